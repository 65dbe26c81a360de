// vmm/config.ts and device-syntax.ts: what users write, and one line with a remedy for what cannot be. Rules: issue 2 "Bad input",
// QEMU's words as in facts/qemu-compat, section D.
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import type { DeviceType } from '../../../devices/contract.ts';
import { createRegistry } from '../../../devices/registry.ts';
import { VmmError } from '../../../native/errno.ts';
import { judgeAccel, judgeConfig, judgeCpus, judgeMemory, judgeSerial } from '../../../vmm/config.ts';
import { parseDevices } from '../../../vmm/device-syntax.ts';
import { parseSize, sizeText } from '../../../vmm/size.ts';

const nowhere = () => {
  throw new Error('not created in this test');
};
const vfio: DeviceType = {
  name: 'vfio-pci',
  help: 'a passed-through PCI device',
  properties: {
    host: { kind: 'string', required: true, help: 'its PCI address' },
    'x-no-mmap': { kind: 'boolean', required: false, help: '' },
    limit: { kind: 'size', required: false, help: '' },
    count: { kind: 'number', required: false, help: '' },
  },
  create: nowhere,
};
const registry = createRegistry([vfio, { ...vfio, name: 'counter', properties: {} }]);
const folder = mkdtempSync(join(tmpdir(), 'ferry-config-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** The refusal's text; every refusal is one line and exit code 2. */
function refusal(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(VmmError);
    const { message, exitCode } = error as VmmError;
    expect(exitCode).toBe(2);
    expect(message).not.toContain('\n');
    return message;
  }
  throw new Error('was not refused');
}
const device = (...texts: string[]) => parseDevices(texts, registry);

describe('sizes', () => {
  it.each([
    ['512M', 512 * 2 ** 20],
    ['2G', 2 ** 31],
    ['1.5G', 1.5 * 2 ** 30],
    ['512', 512 * 2 ** 20],
    ['4096K', 2 ** 22],
    ['512MiB', 512 * 2 ** 20],
    ['2g', 2 ** 31],
  ])('%s', (text, bytes) => expect(parseSize(text, 2 ** 20)).toBe(bytes));
  it.each(['', 'M', '1X', '-1G', '1e9', '0x10', '1 G', '99999999999T'])('%j is none', (text) =>
    expect(parseSize(text, 1)).toBeNull(),
  );
  it('are said in the largest unit that fits', () => {
    expect([sizeText(2 ** 31), sizeText(3 * 2 ** 20), sizeText(512), sizeText(2 ** 30 + 1)]).toEqual([
      '2 GiB',
      '3 MiB',
      '512 bytes',
      '1024.0 MiB',
    ]);
  });
});

describe('--memory and --cpus', () => {
  it('RAM of 0, of nothing, beyond the host, or of broken pages is refused with a remedy', () => {
    expect(refusal(() => judgeMemory('0'))).toMatch(/at least 1M; write/);
    expect(refusal(() => judgeMemory('lots'))).toMatch(/no size; write for example/);
    expect(refusal(() => judgeMemory('16G', 8 * 2 ** 30))).toMatch(/this host has 8 GiB .*give the guest less/);
    expect(refusal(() => judgeMemory('4097K'))).toMatch(/4 KiB pages/);
    expect(judgeMemory(undefined)).toBe(256 * 2 ** 20);
  });
  it('1 to 16 vCPUs', () => {
    expect([judgeCpus(undefined), judgeCpus('1'), judgeCpus('16')]).toEqual([1, 1, 16]);
    for (const text of ['0', '17', '-1', 'two', '1.5', '']) expect(refusal(() => judgeCpus(text))).toMatch(/1 to 16/);
  });
});

describe('--kernel', () => {
  it('missing, a folder, unreadable: named with its path', () => {
    expect(refusal(() => judgeConfig({ kernel: '/no/such' }, registry))).toBe(
      '--kernel /no/such: no such file; give the path of a readable file',
    );
    expect(refusal(() => judgeConfig({ kernel: folder }, registry))).toMatch(/not a file/);
    const kernel = join(folder, 'vmlinuz');
    writeFileSync(kernel, 'x');
    expect(refusal(() => judgeConfig({ kernel, initrd: '/no/initrd' }, registry))).toMatch(/--initrd \/no\/initrd/);
    expect(judgeConfig({ kernel, append: 'quiet' }, registry).boot).toEqual({ kernel, initrd: null, append: 'quiet' });
    if (process.getuid?.() !== 0) {
      chmodSync(kernel, 0);
      expect(refusal(() => judgeConfig({ kernel }, registry))).toMatch(/not readable/);
    }
  });
  it('an initrd or a command line without a kernel is a mistake', () => {
    expect(refusal(() => judgeConfig({ initrd: 'x' }, registry))).toMatch(/without --kernel/);
    expect(refusal(() => judgeConfig({ append: 'x' }, registry))).toMatch(/without --kernel/);
  });
});

describe('--accel', () => {
  it('is kvm, with the dirty log that is asked for', () => {
    expect(judgeAccel(undefined)).toEqual({ kind: 'bitmap' });
    expect(judgeAccel('kvm')).toEqual({ kind: 'bitmap' });
    expect(judgeAccel('kvm,dirty-ring-size=0')).toEqual({ kind: 'bitmap' });
    expect(judgeAccel('kvm,dirty-ring-size=4096')).toEqual({ kind: 'ring', ringEntries: 4096 });
    expect(judgeAccel('kvm,dirty-log=manual')).toEqual({ kind: 'manual' });
  });

  it.each([
    ['tcg', 'only kvm is there'],
    ['kvm,dirty-ring-size=1000', 'a power of two of entries, 1024 to 65536'],
    ['kvm,dirty-ring-size=131072', 'a power of two of entries, 1024 to 65536'],
    ['kvm,dirty-ring-size=', 'a power of two of entries'],
    ['kvm,dirty-log=ring', '"dirty-log=ring" is unknown'],
    ['kvm,kernel-irqchip=off', '"kernel-irqchip=off" is unknown'],
  ])('%s is refused in one line', (text, words) => {
    expect(() => judgeAccel(text)).toThrow(words);
  });
});

describe('--serial', () => {
  it('takes stdio, none, file: and unix:', () => {
    expect(judgeSerial(undefined)).toEqual({ kind: 'stdio' });
    expect(judgeSerial('none')).toEqual({ kind: 'none' });
    expect(judgeSerial('file:/tmp/a:b')).toEqual({ kind: 'file', path: '/tmp/a:b' });
    expect(judgeSerial('unix:/run/s')).toEqual({ kind: 'unix', path: '/run/s' });
    for (const text of ['', 'file:', 'tty']) expect(refusal(() => judgeSerial(text))).toMatch(/stdio, none/);
  });
});

describe('--device', () => {
  it('driver,key=value and JSON say the same', () => {
    const wanted = {
      type: 'vfio-pci',
      id: 'net0',
      slot: 4,
      properties: { host: '0000:65:00.0', 'x-no-mmap': true, limit: 65536, count: 16 },
    };
    expect(device('vfio-pci,host=0000:65:00.0,id=net0,addr=0x4,bus=pci.0,x-no-mmap=on,limit=64K,count=0x10')).toEqual([
      wanted,
    ]);
    expect(
      device(
        '{"driver":"vfio-pci","host":"0000:65:00.0","id":"net0","addr":"04.0","x-no-mmap":true,"limit":65536,"count":16}',
      ),
    ).toEqual([wanted]);
  });

  it('a doubled comma is a comma, a bare switch is on', () => {
    expect(device('vfio-pci,host=a,,b,x-no-mmap')[0]!.properties).toEqual({ host: 'a,b', 'x-no-mmap': true });
  });

  it('ids are made from type and order, so both ends get the same', () => {
    expect(device('counter', 'vfio-pci,host=a', 'counter').map((one) => one.id)).toEqual([
      'counter-0',
      'vfio-pci-0',
      'counter-1',
    ]);
  });

  it.each([
    [['nope'], "'nope' is not a valid device model name; there are: counter, vfio-pci"],
    [['vfio-pci,host=a,bogus=1'], "Property 'vfio-pci.bogus' not found; it has: host, x-no-mmap, limit, count"],
    [['counter,id=a', 'counter,id=a'], "Duplicate device ID 'a'; give each --device an id= of its own"],
    [['counter,bus=pci.9'], "Bus 'pci.9' not found; there is pci.0"],
    [['vfio-pci'], "Parameter 'host' is missing: --device vfio-pci needs it (its PCI address)"],
    [['{"id":"x"}'], "--device: Parameter 'driver' is missing"],
    [['vfio-pci,host=a,x-no-mmap=maybe'], "Parameter 'x-no-mmap' expects 'on' or 'off', not 'maybe'"],
    [['vfio-pci,host=a,limit=big'], "Parameter 'limit' expects a size such as 64K or 1G, not 'big'"],
    [['vfio-pci,host=a,count=1.5'], "Parameter 'count' expects a number, not '1.5'"],
    [['counter,addr=0'], 'addr=0: no such PCI slot; give 0x1 to 0x1f (0 is the host bridge)'],
    [['counter,addr=20'], 'addr=20: no such PCI slot; give 0x1 to 0x1f (0 is the host bridge)'],
    [['counter,addr=3.1'], 'addr=3.1: functions other than 0 are not there; give the slot alone'],
    [
      ['counter,addr=3', 'vfio-pci,host=a,addr=0x3'],
      "addr=0x3 is taken twice; give 'vfio-pci-0' another slot, or none",
    ],
  ])('%j is refused in these words', (texts, words) => {
    expect(refusal(() => device(...texts))).toBe(words);
  });

  it.each([
    [''],
    ['counter,'],
    ['counter,id=1abc'],
    ['counter,id=a,id=b'],
    ['{"driver":'],
    ['{"driver":"counter","id":null}'],
  ])('%j is refused', (text) => {
    refusal(() => device(text));
  });

  it('no property of Object.prototype is a device property', () => {
    expect(refusal(() => device('counter,toString=1'))).toMatch(/Property 'counter.toString' not found/);
    expect(refusal(() => device('constructor'))).toMatch(/not a valid device model name/);
  });
});
