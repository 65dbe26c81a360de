// The migration room behind control's MigrationDoor, with all that it needs from vmm. Loaded by host-session.ts at the first migration.
import type { MigrationDoor } from '../control/migration-door.ts';
import { receiveFrom } from '../migration/destination.ts';
import { migrateTo } from '../migration/source.ts';
import { connectPeer, listenForPeer } from '../migration/transport/uri.ts';
import { checkCpuContract } from '../vmm/cpu-contract.ts';
import { buildForIncoming } from '../vmm/machine.ts';
import type { PreparedRam } from '../vmm/prepared-ram.ts';

/** `prepared`: RAM that was allocated ahead for the guest to come. */
export function openMigrationRoom(prepared: PreparedRam | null): MigrationDoor {
  return {
    connect: connectPeer,
    listen: listenForPeer,
    migrateTo,
    receiveFrom: (peer, host) =>
      receiveFrom(peer, host, {
        buildForIncoming: (config, cpu, machineHost) => buildForIncoming(config, cpu, machineHost, prepared),
        checkCpuContract,
      }),
  };
}
