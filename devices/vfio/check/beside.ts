// The devices beside the one under check: a second one, to load into and to do DMA to, and one of another size. Found before anything is opened
// (cli/vfio-check.ts), opened by the child of a check (serve.ts); each in a container of its own. JS thread.
import { VmmError } from '../../../native/errno.ts';
import type { GroupMember } from '../bare-group.ts';
import type { HostPaths } from '../kernel-door.ts';
import type { CheckDoor } from './check-door.ts';
import type { Exerciser } from './exerciser.ts';
import type { FoundGeneration } from './generation.ts';
import type { BenchHost, BesideDevice } from './opened.ts';
import { type DevicePlace, findDevice, openPlace } from './place.ts';
import type { Beside } from './rule.ts';

export const BESIDE: readonly Beside[] = ['second', 'other-size'];

/** As the user named them; null: not. */
export type BesideTexts = Readonly<Record<Beside, string | null>>;

export type BesideMembers = Readonly<Record<Beside, GroupMember | null>>;

/** Touches nothing. Throws VmmError for one that cannot be opened beside the others. */
export function findBeside(paths: HostPaths, device: string, texts: BesideTexts): BesideMembers {
  const taken = [{ text: device, member: findDevice(paths, device) }];
  const find = (which: Beside): GroupMember | null => {
    const text = texts[which];
    if (text === null) return null;
    const member = findDevice(paths, text);
    for (const other of taken) checkApart(`--${which} ${text}`, member, other);
    taken.push({ text, member });
    return member;
  };
  return { second: find('second'), 'other-size': find('other-size') };
}

interface Taken {
  readonly text: string;
  readonly member: GroupMember;
}

function checkApart(option: string, member: GroupMember, taken: Taken): void {
  if (member.name === taken.member.name) {
    throw new VmmError('usage', `${option}: that is ${taken.text} once more; name another device`);
  }
  if (member.group !== taken.member.group) return;
  throw new VmmError(
    'usage',
    `${option}: it is in IOMMU group ${member.group} with ${taken.text}, and a group goes into one container only; name a device in another group`,
  );
}

/** What is asked of a device once its place is open. */
export interface Look {
  generation(place: DevicePlace): Promise<FoundGeneration>;
  look(place: DevicePlace): { readonly exerciser: Exerciser | null; readonly ids: string };
}

export interface OpenedBeside {
  readonly beside: BenchHost['beside'];
  close(): Promise<void>;
}

/** `wanted`: what the device under check was found to be. */
export async function openBeside(
  host: { readonly door: CheckDoor; readonly paths: HostPaths },
  members: BesideMembers,
  look: Look,
  wanted: { readonly generation: string; readonly ids: string },
): Promise<OpenedBeside> {
  const places: DevicePlace[] = [];
  const close = async () => {
    for (const place of places.splice(0).reverse()) await place.close();
  };
  const open = async (which: Beside): Promise<BesideDevice | null> => {
    const member = members[which];
    if (member === null) return null;
    const place = await openPlace(host.door, host.paths, member);
    places.push(place);
    const { generation } = await look.generation(place);
    if (generation !== wanted.generation) {
      throw new VmmError(
        'usage',
        `--${which} ${member.name}: it speaks ${generation}, and the device under check ${wanted.generation}; name one that speaks the same`,
      );
    }
    const { exerciser, ids } = look.look(place);
    return { place, exerciser, sameKind: ids === wanted.ids };
  };
  try {
    return { beside: { second: await open('second'), 'other-size': await open('other-size') }, close };
  } catch (error) {
    await close();
    throw error;
  }
}
