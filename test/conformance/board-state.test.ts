// The state contract over every device of a whole board, built as machine.ts builds it: ids are unique, states are plain data that pack,
// a second board takes them and gives the same back, and garbage is refused without changing anything. A new device on the board is in
// here by itself. Rules: devices/contract.ts, Stateful; architecture.md, "Restore by constructor or build-then-load".
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Device } from '../../devices/contract.ts';
import { createRegistry, type DeviceRegistry } from '../../devices/registry.ts';
import { StateError } from '../../native/errno.ts';
import type { MachineConfig } from '../../vmm/api.ts';
import { Board } from '../../vmm/board.ts';
import { fakeHost } from '../fakes/device-host.ts';
import { packed } from './device-state.ts';

const boards: Board[] = [];
afterEach(async () => {
  for (const board of boards.splice(0)) await board.close();
});

const config: MachineConfig = {
  name: 'board',
  memory: 64 * 2 ** 20,
  cpus: 1,
  boot: null,
  devices: [
    { type: 'counter', id: 'one', slot: 5, properties: {} },
    { type: 'counter', id: 'two', slot: null, properties: {} },
  ],
  serial: { kind: 'none' },
  clock: 'stop',
  noReboot: false,
  preallocate: false,
  dirtyLog: { kind: 'bitmap' },
  debugExit: true,
};

let registry: DeviceRegistry | null = null;
async function board(): Promise<Board> {
  if (registry === null) {
    registry = createRegistry([]);
    await registry.loadPlugin(join(import.meta.dirname, '../../docs/examples/counter-device.js'));
  }
  const made = await Board.build({ host: fakeHost(), config, registry, consoleOut: () => {} });
  boards.push(made);
  return made;
}

/** Accesses that take a board away from its power-on state: each port written with `value`, but for those that end or reset it. */
function disturb(made: Board, value: number): void {
  const spare = ['i8042', 'reset-control', 'pm', 'pvpanic', 'debug-exit'];
  for (const device of made.devices) {
    if (spare.includes(device.id)) continue;
    for (const claim of device.claims) for (const offset of [0, 1, 4]) claim.region.write(offset, 1, value);
  }
  made.powerButton();
}

const withState = (made: Board): Device[] => made.devices.filter((device) => device.state !== null);

describe('every device of the board', () => {
  it('has an id of its own, and PCI functions come last, by slot', async () => {
    const ids = (await board()).devices.map((device) => device.id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids.slice(-2)).toEqual(['two', 'one']);
  });

  it('the states of one board, packed, loaded into another, are saved the same', async () => {
    const from = await board();
    disturb(from, 0x55);
    from.serial.receive(Buffer.from('typed'));
    const to = await board();
    let different = 0;
    for (const [index, device] of withState(from).entries()) {
      const twin = withState(to)[index]!;
      expect(twin.id).toBe(device.id);
      const state = packed(device.state!.save());
      if (JSON.stringify(packed(twin.state!.save())) !== JSON.stringify(state)) different++;
      twin.state!.load(state, device.state!.version);
      expect(packed(twin.state!.save()), device.id).toEqual(state);
    }
    expect(different, 'disturb() must have changed something').toBeGreaterThan(2);
  });

  it('garbage, another device’s state and a version of the future are StateErrors, and change nothing', async () => {
    const made = await board();
    disturb(made, 0x33);
    const states = withState(made).map((device) => packed(device.state!.save()));
    for (const [index, device] of withState(made).entries()) {
      const before = states[index];
      const foreign = states[(index + 1) % states.length];
      // Two devices of one type understand each other's state.
      const alike = JSON.stringify(Object.keys(foreign as object)) === JSON.stringify(Object.keys(before as object));
      for (const garbage of [null, 1, 'x', [], {}, ...(alike ? [] : [foreign])]) {
        expect(() => device.state!.load(garbage, device.state!.version), `${device.id}`).toThrow(StateError);
        expect(packed(device.state!.save()), device.id).toEqual(before);
      }
      expect(() => device.state!.load(before, device.state!.version + 1), device.id).toThrow(StateError);
    }
  });

  it('reset brings each back to what a new board saves', async () => {
    const made = await board();
    const fresh = await board();
    disturb(made, 0x77);
    for (const device of [...made.devices].reverse()) await device.reset();
    for (const [index, device] of withState(made).entries()) {
      // The CMOS clock runs on and its NVRAM is battery-backed.
      if (device.id === 'rtc') continue;
      expect(packed(device.state!.save()), device.id).toEqual(packed(withState(fresh)[index]!.state!.save()));
    }
  });
});
