// Which generation of VFIO's migration interface a device under check speaks, before any rule runs: by what the driver of a guest's device is
// asked too (migration/probe-abi.ts), or as `--abi` says. Called by the child of a check. docs/migration-abis.md
import { VFIO_DEVICE_FEATURE_MIGRATION } from '../../../native/abi/vfio.ts';
import { VmmError } from '../../../native/errno.ts';
import { probeFeature } from '../migration/feature-arg.ts';
import { ANY_ABI, openMigration } from '../migration/probe-abi.ts';
import type { DevicePlace } from './place.ts';
import type { Generation } from './rule.ts';

export const GENERATIONS: readonly Generation[] = ['v2', 'v1', 'v7', 'regions'];

export interface FoundGeneration {
  readonly generation: Generation;
  /** Why: a sentence for each fact that was used. */
  readonly facts: readonly string[];
}

/** Throws VmmError for a device that has none. */
export async function findGeneration(place: DevicePlace, wish: Generation | null): Promise<FoundGeneration> {
  if (wish !== null) return { generation: wish, facts: [`--abi ${wish} says so`] };
  const { door, name, tracks } = place;
  const fd = place.openDevice();
  try {
    // One without STOP_COPY is no use to a guest, but it is v2's rules that say so.
    if (probeFeature({ door, fd }, VFIO_DEVICE_FEATURE_MIGRATION, 'get')) {
      return { generation: 'v2', facts: ['it has VFIO_DEVICE_FEATURE_MIGRATION'] };
    }
    const found = await openMigration({ door, fd, name, containerTracks: tracks }, ANY_ABI);
    found.close();
    const generation = GENERATIONS.find((each) => each === found.port?.abi);
    if (generation !== undefined) return { generation, facts: found.facts };
    const facts = found.facts.join('; ');
    throw new VmmError(
      'migration-abi',
      `${name}: its driver offers no VFIO migration, so there is nothing to check (${facts}); docs/bring-up.md says how it gets one, \`--abi v1\`, v7 or regions runs the rules of one all the same`,
    );
  } finally {
    door.closeFd(fd);
  }
}
