// The devices beside the one under check (--second, --other-size): named apart, each in a container of its own, of the same generation, and closed
// again whatever comes of it.
import { readdirSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { findBeside, type Look, openBeside } from '../../../devices/vfio/check/beside.ts';
import { repeatOf } from '../../../devices/vfio/check/run-rule.ts';
import { checkDoor } from '../../fakes/check-door.ts';
import { HostTree } from '../../fakes/host-tree.ts';

const [FIRST, SECOND, THIRD] = ['0000:65:00.0', '0000:66:00.0', '0000:67:00.0'] as const;
let tree = new HostTree();
afterEach(() => {
  tree.close();
  tree = new HostTree();
});

const fds = () => readdirSync('/proc/self/fd').length;

/** `ids` and generation by the device's name. */
function look(ids: Readonly<Record<string, string>>, generation: 'v2' | 'v1' = 'v2'): Look {
  return {
    generation: async () => ({ generation, facts: [] }),
    look: ({ name }) => ({ exerciser: null, ids: ids[name] ?? '' }),
  };
}

describe('devices beside the one under check', () => {
  it('are other devices, in other groups', () => {
    tree.device(FIRST, 17, 'vfio-pci');
    tree.device(SECOND, 18, 'vfio-pci');
    expect(findBeside(tree.paths, FIRST, { second: SECOND, 'other-size': null })).toEqual({
      second: { name: SECOND, group: 18 },
      'other-size': null,
    });
    const refused = (second: string, other: string | null) => () =>
      findBeside(tree.paths, FIRST, { second, 'other-size': other });
    expect(refused('65:00.0', null)).toThrow(`--second 65:00.0: that is ${FIRST} once more`);
    expect(refused(SECOND, SECOND)).toThrow(`--other-size ${SECOND}: that is ${SECOND} once more`);
  });

  it('cannot share a group: it goes into one container', () => {
    tree.device(FIRST, 17, 'vfio-pci');
    tree.device(SECOND, 17, 'vfio-pci');
    expect(() => findBeside(tree.paths, FIRST, { second: SECOND, 'other-size': null })).toThrow(
      `--second ${SECOND}: it is in IOMMU group 17 with ${FIRST}`,
    );
  });

  it('are opened in containers of their own, told by their ids, and closed without a trace', async () => {
    for (const [i, name] of [SECOND, THIRD].entries()) tree.device(name, 18 + i, 'vfio-pci');
    const kernel = checkDoor();
    const before = fds();
    const members = { second: { name: SECOND, group: 18 }, 'other-size': { name: THIRD, group: 19 } };
    const { beside, close } = await openBeside(
      { door: kernel, paths: tree.paths },
      members,
      look({ [SECOND]: '3412', [THIRD]: 'ffff' }),
      { generation: 'v2', ids: '3412' },
    );
    expect([beside.second?.sameKind, beside['other-size']?.sameKind]).toEqual([true, false]);
    expect(kernel.names.filter((name) => name === 'VFIO_SET_IOMMU').length).toBe(2);
    await close();
    expect(kernel.names.filter((name) => name === 'VFIO_GROUP_UNSET_CONTAINER').length).toBe(2);
    expect(fds()).toBe(before);
  });

  it('speak what the first one speaks, or are refused in one line with nothing left open', async () => {
    tree.device(SECOND, 18, 'vfio-pci');
    const before = fds();
    const members = { second: { name: SECOND, group: 18 }, 'other-size': null };
    const opened = openBeside({ door: checkDoor(), paths: tree.paths }, members, look({}, 'v1'), {
      generation: 'v2',
      ids: '',
    });
    await expect(opened).rejects.toThrow(
      `--second ${SECOND}: it speaks v1, and the device under check v2; name one that speaks the same`,
    );
    expect(fds()).toBe(before);
  });

  it('are named in the command that repeats a finding', () => {
    const host = { deviceText: 'X', exerciserFile: null, destructive: false, abi: null };
    const besideTexts = { second: 'Y', 'other-size': 'Z' };
    expect(repeatOf({ name: 'a.b' }, { ...host, besideTexts })).toBe(
      'ferry vfio check X --second Y --other-size Z --only a.b',
    );
  });
});
