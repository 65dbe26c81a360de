// How guests end or reset their machine, each with its state, events and exit code. Rules: main-job.md, "Guest ends and the probe".
import { afterEach, describe, expect, it } from 'vitest';
import type { DeviceType } from '../../devices/contract.ts';
import { bootFlat, type FlatMachine, type FlatOptions } from './flat-machine.ts';

const open: FlatMachine[] = [];
async function run(guest: string, options: FlatOptions = {}): Promise<FlatMachine> {
  const flat = await bootFlat(guest, options);
  open.push(flat);
  await flat.machine.start();
  return flat;
}
afterEach(async () => {
  for (const flat of open.splice(0)) await flat.machine.close();
});

const names = (flat: FlatMachine) => flat.events.map((event) => event.event);

describe('a flat guest', () => {
  it('says hello and ends through port 0xf4 with code<<1|1', async () => {
    const flat = await run('hello', { append: 'code=21' });
    const end = await flat.machine.ended;
    expect(flat.text()).toContain('hello from a flat guest');
    expect(end).toEqual({ reason: 'guest-shutdown', exitCode: 43, detail: null });
    expect(flat.machine.state).toBe('shutdown');
    expect(names(flat)).toEqual(['RESUME', 'SHUTDOWN', 'STOP']);
  });

  it.each(['triple', 'i8042', 'cf9'])('end=%s resets the machine, which then starts again', async (way) => {
    const flat = await run('ends', { append: `end=${way}` });
    const end = await flat.machine.ended;
    expect([flat.text(), end]).toEqual(['first\nagain\n', { reason: 'guest-shutdown', exitCode: 11, detail: null }]);
    expect(flat.events).toContainEqual({ event: 'RESET', guest: true, reason: 'guest-reset' });
  });

  it('with noReboot a guest’s reset is its end, exit code 0', async () => {
    const flat = await run('ends', { append: 'end=cf9', noReboot: true });
    expect(await flat.machine.ended).toEqual({ reason: 'guest-reset', exitCode: 0, detail: null });
    expect(flat.text()).not.toContain('again');
  });

  it('S5 ends it with exit code 0', async () => {
    const flat = await run('ends', { append: 'end=s5' });
    expect(await flat.machine.ended).toEqual({ reason: 'guest-shutdown', exitCode: 0, detail: null });
  });

  it('a panic by pvpanic ends it with exit code 1 and SHUTDOWN guest-panic', async () => {
    const flat = await run('ends', { append: 'end=panic' });
    expect(await flat.machine.ended).toMatchObject({ reason: 'guest-panic', exitCode: 1 });
    expect(flat.machine.state).toBe('guest-panicked');
    expect(flat.events).toContainEqual({ event: 'SHUTDOWN', guest: true, reason: 'guest-panic' });
  });

  it('a halted guest is no end: the machine goes on, and quits when it is told to', async () => {
    const flat = await run('ends', { append: 'end=halt' });
    await flat.said(/first/);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(flat.machine.state).toBe('running');
    flat.machine.end('host-qmp-quit', 0);
    expect(await flat.machine.ended).toMatchObject({ reason: 'host-qmp-quit', exitCode: 0 });
    expect(flat.events).toContainEqual({ event: 'SHUTDOWN', guest: false, reason: 'host-qmp-quit' });
  });
});

describe('from outside', () => {
  it('a reset of a spinning guest starts it again', async () => {
    const flat = await run('ends', { append: 'end=loop' });
    await flat.said(/first/);
    await flat.machine.reset('host-qmp-system-reset');
    expect(flat.events).toContainEqual({ event: 'RESET', guest: false, reason: 'host-qmp-system-reset' });
    await flat.said(/again/);
    expect((await flat.machine.ended).exitCode).toBe(11);
  });

  it('pause and start, a hundred times, of a guest that spins: STOP and RESUME each, and it still answers', async () => {
    const flat = await run('ends', { append: 'end=loop' });
    await flat.said(/first/);
    for (let i = 0; i < 100; i++) {
      await flat.machine.pause('paused');
      expect(flat.machine.state).toBe('paused');
      await flat.machine.start();
    }
    expect(names(flat).filter((name) => name === 'STOP').length).toBe(100);
    await flat.machine.reset('host-qmp-system-reset');
    await flat.said(/again/);
  });

  it('close() ends a running machine at once, and twice is once', async () => {
    const flat = await run('ends', { append: 'end=loop' });
    await flat.said(/first/);
    await Promise.all([flat.machine.close(), flat.machine.close()]);
  });
});

describe('what must not happen', () => {
  it('a device that throws in an access ends the machine with exit code 1 and says which, instead of the process', async () => {
    const broken: DeviceType = {
      name: 'broken',
      help: 'throws on every read',
      properties: {},
      create: (_host, id) => ({
        id,
        type: 'broken',
        claims: [
          {
            space: 'mmio',
            base: 0xd0000000,
            region: {
              name: 'broken',
              size: 4096,
              read: () => {
                throw new Error('no such register');
              },
              write: () => {},
              wide: null,
              fast: null,
            },
          },
        ],
        state: null,
        live: null,
        dirty: null,
        interrupts: null,
        reset() {},
        close() {},
      }),
    };
    const flat = await run('exits', {
      append: 'count=1 mmio=1 read=1',
      types: [broken],
      devices: [{ type: 'broken', id: 'b', slot: null, properties: {} }],
    });
    const end = await flat.machine.ended;
    expect(end).toMatchObject({ reason: 'internal-error', exitCode: 1 });
    expect(end.detail).toMatch(/a device model failed: Error: no such register/);
  });

  it('nothing can be asked of a closed machine, and typing at it is no error', async () => {
    const flat = await run('ends', { append: 'end=loop' });
    await flat.machine.close();
    flat.type('x');
    await expect(flat.machine.start()).rejects.toThrow(/closed/);
    await expect(flat.machine.pause('paused')).rejects.toThrow(/closed/);
  });
});
