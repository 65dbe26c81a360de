// The migration room behind control's MigrationDoor, with all that it needs from vmm. Loaded by host-session.ts at the first migration.
import type { MigrationDoor } from '../control/migration-door.ts';
import { receiveFrom } from '../migration/destination.ts';
import { migrateTo } from '../migration/source.ts';
import { connectPeer, listenForPeer } from '../migration/transport/uri.ts';
import { SysError } from '../native/errno.ts';
import { checkCpuContract, type HostOffer, readHostOffer } from '../vmm/cpu-contract.ts';
import { buildForIncoming } from '../vmm/machine.ts';
import type { PreparedRam } from '../vmm/prepared-ram.ts';

/** `prepared`: RAM that was allocated ahead for the guest to come. */
export function openMigrationRoom(prepared: PreparedRam | null): MigrationDoor {
  let offer: HostOffer | null = null;
  return {
    connect: connectPeer,
    listen: async (uri) => {
      offer = offerOfHost();
      return listenForPeer(uri);
    },
    migrateTo,
    receiveFrom: (peer, host) =>
      receiveFrom(peer, host, {
        buildForIncoming: (config, cpu, machineHost) => buildForIncoming(config, cpu, machineHost, prepared),
        checkCpuContract: (wanted) => checkCpuContract(wanted, offer ?? readHostOffer()),
      }),
  };
}

/** Read while nobody waits, and before anything is there that would have to be taken back: a host without KVM (VmmError) can receive nothing.
 *  null: KVM is there and refuses a call, which whoever receives a guest is told. */
function offerOfHost(): HostOffer | null {
  try {
    return readHostOffer();
  } catch (error) {
    if (error instanceof SysError) return null;
    throw error;
  }
}
