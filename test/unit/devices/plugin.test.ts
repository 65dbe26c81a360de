// devices/registry.ts and simple-function.ts: plug-ins are found, judged and built; the documented example works and its state moves.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Device, DeviceType, PciFunction } from '../../../devices/contract.ts';
import { isPciFunction } from '../../../devices/pci/function.ts';
import { createPciFunction } from '../../../devices/pci/simple-function.ts';
import { createRegistry } from '../../../devices/registry.ts';
import { StateError } from '../../../native/errno.ts';
import { expectStateConformance } from '../../conformance/device-state.ts';
import { fakeHost } from '../../fakes/device-host.ts';

const EXAMPLE = resolve(import.meta.dirname, '../../../docs/examples/counter-device.js');
const BAR = 0xe0000000;
const MSI = 0x40;

const TYPE: DeviceType = {
  name: 'thing',
  help: 'a thing',
  properties: { host: { kind: 'string', required: true, help: 'which one' } },
  create: () => {
    throw new Error('not made here');
  },
};

async function counterType(): Promise<DeviceType> {
  const registry = createRegistry([]);
  expect(await registry.loadPlugin(EXAMPLE)).toBe('counter');
  return registry.get('counter')!;
}

function attach(type: DeviceType, properties: Record<string, number> = {}) {
  const host = fakeHost();
  const made = type.create(host, 'counter0', properties) as Device;
  if (!isPciFunction(made)) throw new Error('the example makes a PCI function');
  made.attached({ bus: 0, slot: 3, function: 0, gsi: 19 });
  return { host, pci: made, bus: host.bus };
}

/** As a driver sets it up: BAR 0, memory decoding, one MSI. */
function enable(pci: PciFunction): void {
  pci.writeConfig(0x10, 4, BAR);
  pci.writeConfig(0x04, 2, 0x6);
  pci.writeConfig(MSI + 4, 4, 0xfee00000);
  pci.writeConfig(MSI + 12, 2, 0x41);
  pci.writeConfig(MSI + 2, 2, 1);
}

describe('the registry', () => {
  it('knows types by name and refuses a second one of the same name', () => {
    const registry = createRegistry([TYPE]);
    expect(registry.get('thing')).toBe(TYPE);
    expect(registry.get('nothing')).toBe(null);
    expect(() => registry.register({ ...TYPE })).toThrow(/'thing' is registered already/);
    expect(registry.names()).toEqual(['thing']);
  });

  it('two registries know nothing of each other', () => {
    createRegistry([TYPE]);
    expect(createRegistry([]).names()).toEqual([]);
  });

  it('prints help for all types and for one', () => {
    const registry = createRegistry([TYPE]);
    expect(registry.help()).toBe('thing  a thing\n');
    expect(registry.helpFor('thing')).toContain('  host=<string>  which one (required)\n');
    expect(registry.helpFor('thing')).toContain('addr=<slot>');
    expect(registry.helpFor('nothing')).toBe(null);
  });
});

describe('--plugin', () => {
  let dir: string;
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'ferry-plugin-'));
  });
  afterAll(() => rmSync(dir, { recursive: true }));
  const file = (name: string, text: string) => {
    const path = join(dir, name);
    writeFileSync(path, text);
    return path;
  };
  const body = (name: string) => `{ name: '${name}', help: 'h', properties: {}, create() {} }`;

  it('takes ES modules and CommonJS, a type or a function that makes one', async () => {
    const registry = createRegistry([]);
    await registry.loadPlugin(file('a.mjs', `export default ${body('a')}`));
    await registry.loadPlugin(file('b.cjs', `module.exports = (api) => (${body('b')})`));
    await registry.loadPlugin(file('c.cjs', `exports.default = async () => (${body('c')})`));
    expect(registry.names()).toEqual(['a', 'b', 'c']);
  });

  it.each([
    ['missing.mjs', null, /cannot load plug-in .*missing\.mjs: there is no such file$/],
    ['syntax.mjs', 'export default {', /cannot load plug-in .*syntax\.mjs: /],
    ['throws.mjs', 'export default () => { throw new Error("no such card\\nat all") }', /throws\.mjs: no such card$/],
    ['none.mjs', 'export const x = 1', /none\.mjs: it has no default export/],
    ['number.mjs', 'export default 7', /number\.mjs: not a device type/],
    ['nocreate.mjs', "export default { name: 'x', help: 'h', properties: {} }", /type 'x' has no create/],
    ['own.mjs', `export default { ...${body('x')}, properties: { id: {} } }`, /property 'id' is the machine's own/],
    ['kind.mjs', `export default { ...${body('x')}, properties: { p: { kind: 'int' } } }`, /property 'p' needs kind/],
    ['dup.mjs', `export default ${body('thing')}`, /'thing' is registered already/],
  ])('%s is one clear line', async (name, text, message) => {
    const registry = createRegistry([TYPE]);
    const path = text === null ? join(dir, name) : file(name, text);
    const failure = await registry.loadPlugin(path).catch((error: Error) => error);
    expect(failure).toMatchObject({ name: 'VmmError', code: 'plugin', exitCode: 2 });
    expect((failure as Error).message).toMatch(message);
    expect((failure as Error).message).not.toContain('\n');
    expect(registry.names()).toEqual(['thing']);
  });
});

describe('the example device', () => {
  it('counts, and sends its MSI when the limit is reached', async () => {
    const { host, pci, bus } = attach(await counterType(), { step: 3 });
    enable(pci);
    expect(bus.in(BAR, 4, 'mmio')).toBe(0x544e4f43);
    bus.out(BAR + 8, 6, 4, 'mmio');
    bus.out(BAR + 4, 1, 4, 'mmio');
    expect(host.irq.sent).toEqual([]);
    bus.out(BAR + 4, 1, 4, 'mmio');
    expect(bus.in(BAR + 4, 4, 'mmio')).toBe(6);
    expect(host.irq.sent).toEqual([{ address: 0xfee00000n, data: 0x41 }]);
    expect(bus.in(BAR + 0xc, 4, 'mmio')).toBe(1);
  });

  it('moves: registers, BAR, MSI and a pending vector', async () => {
    const type = await counterType();
    const a = attach(type);
    enable(a.pci);
    a.bus.out(BAR + 8, 5, 4, 'mmio');
    a.pci.interrupts!.detach();
    a.bus.out(BAR + 4, 5, 4, 'mmio');
    const b = attach(type);
    b.pci.state!.load(a.pci.state!.save(), 1);
    expect(b.bus.in(BAR + 4, 4, 'mmio')).toBe(5);
    expect(b.host.irq.sent).toEqual([]);
    b.pci.interrupts!.attach();
    expect(b.host.irq.sent).toEqual([{ address: 0xfee00000n, data: 0x41 }]);
  });

  it('keeps to the state contract', async () => {
    const type = await counterType();
    expectStateConformance({
      make: () => attach(type).pci,
      mutate: (device) => {
        enable(device as PciFunction);
        (device as PciFunction).writeConfig(MSI + 16, 4, 1);
      },
    });
  });

  it('refuses registers that are none, and keeps its own', async () => {
    const { pci, bus } = attach(await counterType());
    enable(pci);
    const state = pci.state!.save() as { device: object };
    expect(() => pci.state!.load({ ...state, device: { count: -1, limit: 0, interrupts: 0, step: 1 } }, 1)).toThrow(
      StateError,
    );
    expect(() => pci.state!.load({ ...state, device: null }, 1)).toThrow(StateError);
    expect(bus.in(BAR + 4, 4, 'mmio')).toBe(0);
  });

  it('refuses to go on with another step than the guest knows', async () => {
    const type = await counterType();
    const state = attach(type, { step: 2 }).pci.state!.save();
    expect(() => attach(type, { step: 3 }).pci.state!.load(state, 1)).toThrow('step=2 at the source, step=3 here');
  });

  it('reset puts everything back and nothing is left claimed; close too', async () => {
    const { host, pci, bus } = attach(await counterType());
    const fresh = pci.state!.save();
    enable(pci);
    bus.out(BAR + 4, 9, 4, 'mmio');
    await pci.reset();
    expect(pci.state!.save()).toEqual(fresh);
    expect(bus.windows.length).toBe(0);
    enable(pci);
    await pci.close();
    expect(bus.windows.length).toBe(0);
    expect(host.irq.vectors.every((vector) => vector.released)).toBe(true);
  });
});

describe('createPciFunction', () => {
  it('INTx: level, status bit, and the command register that keeps it down (PCI 3.0, 6.2.2)', () => {
    const host = fakeHost();
    const common = { host, id: 'x', type: 'x', vendorId: 1, deviceId: 2, classCode: 0, bars: [], state: null };
    const pci = createPciFunction({ ...common, interrupts: { kind: 'intx' }, reset: () => {} });
    pci.attached({ bus: 0, slot: 2, function: 0, gsi: 18 });
    expect(pci.readConfig(0x3d, 1)).toBe(1);
    pci.setLine(true);
    expect(host.irq.levels.get(18)).toBe(true);
    expect(pci.readConfig(6, 2) & 8).toBe(8);
    pci.writeConfig(4, 2, 0x400);
    expect(host.irq.levels.get(18)).toBe(false);
    expect(pci.readConfig(6, 2) & 8).toBe(8);
    const moved = pci.state!.save();
    pci.reset();
    expect(pci.readConfig(6, 2) & 8).toBe(0);
    pci.state!.load(moved, 1);
    expect(host.irq.levels.get(18)).toBe(false);
    pci.writeConfig(4, 2, 0);
    expect(host.irq.levels.get(18)).toBe(true);
  });

  it('MSI-X: table and pending bits in a BAR of their own', () => {
    const host = fakeHost();
    const common = { host, id: 'x', type: 'x', vendorId: 1, deviceId: 2, classCode: 0, bars: [], state: null };
    const pci = createPciFunction({ ...common, interrupts: { kind: 'msix', count: 3, bar: 4 }, reset: () => {} });
    pci.attached({ bus: 0, slot: 2, function: 0, gsi: 18 });
    pci.writeConfig(0x20, 4, BAR);
    pci.writeConfig(4, 2, 2);
    pci.writeConfig(0x42, 2, 0x8000);
    host.bus.out(BAR + 0x20, 0xfee00000, 4, 'mmio');
    host.bus.out(BAR + 0x28, 0x77, 4, 'mmio');
    pci.raise(2);
    expect(host.bus.in(BAR + 0x800, 4, 'mmio')).toBe(0b100);
    host.bus.out(BAR + 0x800, 0, 4, 'mmio');
    host.bus.out(BAR + 0x2c, 0, 4, 'mmio');
    expect(host.irq.sent).toEqual([{ address: 0xfee00000n, data: 0x77 }]);
    expect(host.bus.in(BAR + 0x800, 4, 'mmio')).toBe(0);
  });

  it('a plug-in that throws or returns too much harms nobody: all-ones, one line in the log', () => {
    const host = fakeHost();
    const read = (offset: number) => {
      if (offset === 0) throw new Error('bug');
      return -1;
    };
    const write = () => {
      throw new Error('bug');
    };
    const none = { kind: 'none' } as const;
    const common = { host, id: 'x', type: 'x', vendorId: 1, deviceId: 2, classCode: 0, interrupts: none, state: null };
    const pci = createPciFunction({
      ...common,
      bars: [{ index: 0, kind: 'mem32', size: 16, read, write }],
      reset() {},
    });
    pci.writeConfig(0x10, 4, BAR);
    pci.writeConfig(4, 2, 2);
    expect([host.bus.in(BAR, 2, 'mmio'), host.bus.in(BAR + 4, 1, 'mmio')]).toEqual([0xffff, 0xff]);
    host.bus.out(BAR, 1, 4, 'mmio');
    expect(host.warned.length).toBe(1);
  });
});
