// The rules of vfio-bringup, the VFIO device with no hardware (images/kmod/vfio-bringup/README.md), each by that folder's test/ in a lab
// host, for every generation of the migration interface. At the end the module has to unload: every data fd, device, thread and page that
// it gave out must have come back.
import { beforeAll, describe, expect, it } from 'vitest';
import type { LabHost } from '../../../lab/host.ts';
import type { Lab } from '../../../lab/lab.ts';
import { BringupDevices, compileBringupChecks } from '../bringup-devices.ts';

const TIMEOUT_MS = 120_000; // measured: at most 6 s
export function kmodBringup(given: () => Lab): void {
  describe('vfio-bringup', () => {
    let lab: Lab;
    let host: LabHost;
    let devices: BringupDevices;

    const load = (count: number, ...parameters: string[]) => devices.load(count, ...parameters);
    const check = async (rule: string, ...which: number[]) =>
      expect(await devices.check(rule, which)).toBe(`ok ${rule}`);

    beforeAll(async () => {
      lab = given();
      host = lab.host(0);
      devices = new BringupDevices(lab);
      compileBringupChecks(lab);
      await devices.complaints();
    });

    describe('the device and abi d', () => {
      beforeAll(() => load(3, 'abi=d', 'memory=1048576,1048576,2097152'));

      it.each([
        ['config', 'config space as PCI has it, BARs can be sized'],
        ['bar', 'registers at any width, the window, the mailbox, a hash that tells changes'],
        ['dma', 'fill, check, read and write reach mapped memory to the byte, and nothing else'],
        ['msi', 'an interrupt an MSI, pending ones are kept and sent once'],
        ['reset', 'VFIO_DEVICE_RESET makes all as after power-on'],
        ['clean', 'the next user finds nothing of the one before'],
        ['container', "type1's own tracking sees each written page and no other"],
        ['reads', 'reads of any size and into bad memory lose no byte'],
        ['refusals', 'short, long, damaged and reordered data is refused, and stays refused'],
        ['quiet', 'a stopped device does nothing and goes on later; P2P leaves peers alone'],
        ['log', 'DMA logging is precise to the page, and sees the last write before a stop'],
        ['arcs', 'every pair of states ends as vfio.h says, with a file or without'],
        ['fail-arc', 'an arc made to fail stays there or leads into ERROR'],
        ['fail-data', 'reads and writes fail at the first, a middle and the last chunk, and work again'],
        ['gone', 'a device that is gone answers nothing, and is as it was when it is back'],
        ['fail-reset', 'a reset that fails changes nothing; a hard one takes PCI_COMMAND and eventfds'],
        ['reset-session', 'a reset ends the session and not the logging'],
        ['reopened', 'the next user begins in RUNNING, not logging'],
      ])('%s: %s', (rule) => check(rule, 0), TIMEOUT_MS);

      it.each([
        ['move', 'memory, registers, DMA in its middle and a pending interrupt come over'],
        ['precopy', 'initial bytes, then what has changed; ENOMSG, poll, and the end'],
        ['cancel', 'a session given up does not spoil the next'],
      ])('%s: %s', (rule) => check(rule, 0, 1), TIMEOUT_MS);

      it('other-size: a device with other memory is refused', () => check('other-size', 0, 2), TIMEOUT_MS);
    });

    const regionRules: readonly (readonly [string, string])[] = [
      ['bc-access', 'a field at another width or place is an error'],
      ['bc-states', 'every pair of states, bits without a meaning are kept'],
      ['bc-refusals', 'chunks that are cut, joined, changed, repeated or missing are refused'],
      ['bc-quiet', 'stopped before the write returns'],
      ['bc-fail-arc', 'an arc made to fail stays there, or leads into ERROR where there is one'],
      ['bc-late', 'validation on entering RUNNING only'],
    ];
    const moveRules: readonly (readonly [string, string])[] = [
      ['bc-move', 'pre-copy, stop-and-copy, and the load: equal state, DMA goes on, the interrupt comes'],
      ['bc-early', 'pre-copy left early loses nothing'],
    ];

    describe('abi c', () => {
      beforeAll(() => load(3, 'abi=c', 'section=65536,65536,12288', 'features=0x1f,0x1f,0x2f'));

      it.each(regionRules)('%s: %s', (rule) => check(rule, 0), TIMEOUT_MS);
      it.each(moveRules)('%s: %s', (rule) => check(rule, 0, 1), TIMEOUT_MS);
      it('container: type1 sees what it writes', () => check('container', 0), TIMEOUT_MS);
      it('bc-mapped: the data section by a mapping', () => check('bc-mapped', 0), TIMEOUT_MS);
      it(
        'bc-split: pieces into a smaller section, where it allows for them',
        () => check('bc-split', 0, 2),
        TIMEOUT_MS,
      );
    });

    describe.each([2, 3])('abi b, region type %i', (type) => {
      beforeAll(() => load(2, 'abi=b', `region_type=${type}`));

      it.each(regionRules)('%s: %s', (rule) => check(rule, 0), TIMEOUT_MS);
      it.each(moveRules)('%s: %s', (rule) => check(rule, 0, 1), TIMEOUT_MS);
      it('b-dirty: precise, in parts, in larger pages', () => check('b-dirty', 0), TIMEOUT_MS);
    });

    describe('abi a', () => {
      beforeAll(() => load(2, 'abi=a'));

      it.each([
        ['a-fields', 'the fields are where they are, each by one access of its size'],
        ['a-states', 'all twelve arcs; stopped is stopped'],
        ['a-dirty', 'the bitmap is precise under LOGGING and empty outside'],
        ['a-refusals', 'damaged data is refused by SET_BUFFER and changes nothing'],
      ])('%s: %s', (rule) => check(rule, 0), TIMEOUT_MS);
      it('a-move: a snapshot, then what was written, then the config data', () => check('a-move', 0, 1), TIMEOUT_MS);
    });

    it('gives everything back: the module unloads, and the kernel has complained about nothing', async () => {
      await devices.unload();
      expect(await host.run('ls -d /sys/class/vfio_bringup /sys/bus/mdev/devices/* 2>/dev/null || true')).toBe('');
      expect(await host.run("grep -l '^bringup-' /proc/[0-9]*/comm || true")).toBe('');
      expect(await devices.complaints()).toEqual([]);
    });
  });
}
