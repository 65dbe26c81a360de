// A device's part in a migration over the scripted fake: the order of states, one session through pre-copy and stop-copy, and the
// ladder (recover state, then reset with interrupts and PCI_COMMAND armed anew) for every fault that the issue names.
import { describe, expect, it } from 'vitest';
import type { ChunkSink, ChunkSource } from '../../../devices/contract.ts';
import { VfioLive } from '../../../devices/vfio/migration/device-state.ts';
import { transition } from '../../../devices/vfio/migration/recover.ts';
import { SysError } from '../../../native/errno.ts';
import type { FakeOptions } from '../../fakes/vfio-transport.ts';
import { FakeVfio } from '../../fakes/vfio-transport.ts';

class Wire implements ChunkSink, ChunkSource {
  readonly chunks: Uint8Array[] = [];
  async put(chunk: Uint8Array): Promise<void> {
    this.chunks.push(chunk);
  }
  async take(length: number): Promise<Uint8Array> {
    const chunk = this.chunks.shift();
    if (chunk === undefined || chunk.length !== length) throw new Error('the wire is empty');
    return chunk;
  }
  async pump(): Promise<never> {
    throw new Error('the fake has no fd');
  }
  async pumpPieces(): Promise<never> {
    throw new Error('the fake has no region');
  }
}

function made(options: FakeOptions = {}, devices = 1) {
  const fake = new FakeVfio(options);
  const port = fake.migration!;
  const log = { debug: () => {}, info: () => {}, warn: () => {} };
  const recoverable = {
    name: fake.name,
    port,
    log,
    reset: () => fake.reset(),
    rearm: () => {
      fake.calls.push('rearm');
    },
  };
  const live = new VfioLive(recoverable, {
    fixedDowntimeMs: 300,
    stopCopySize: null,
    disabled: false,
    requireValidated: false,
    deviceCount: () => devices,
    peersMapped: async () => {
      fake.calls.push('peers mapped');
    },
  });
  return { fake, port, live, recoverable };
}

const states = (fake: FakeVfio) => fake.calls.filter((call) => call.startsWith('state')).map((call) => call.slice(6));

async function save(source: ReturnType<typeof made>, wire: Wire): Promise<void> {
  await source.live.saveSetup();
  while ((await source.live.iterate(wire, 300)) === 'more');
  await source.live.quiesce();
  await source.live.stop();
  await source.live.drain(wire);
}

async function load(target: ReturnType<typeof made>, wire: Wire): Promise<void> {
  await target.live.loadSetup();
  for (const chunk of [...wire.chunks]) await target.live.loadChunk(wire, chunk.length);
  await target.live.loadEnd();
}

describe('a device that moves', () => {
  it('runs at its destination only when the BARs of its peers are where the guest has them', async () => {
    const source = made();
    const target = made();
    const wire = new Wire();
    await save(source, wire);
    await load(target, wire);
    target.fake.calls.length = 0;
    await target.live.run();
    expect(target.fake.calls).toEqual(['peers mapped', 'state running']);
  });

  it('does not take a channel that was cancelled for a refusal of the device', async () => {
    const target = made();
    await target.live.loadSetup();
    const cancelled = new SysError('channel', 125);
    const wire = Object.assign(new Wire(), { take: () => Promise.reject(cancelled) });
    await expect(target.live.loadChunk(wire, 5)).rejects.toBe(cancelled);
    const refusing = Object.assign(new Wire(), { take: () => Promise.reject(new SysError('write(data fd)', 22)) });
    await expect(target.live.loadChunk(refusing, 5)).rejects.toThrow(
      'the device refused its state (write(data fd): EINVAL)',
    );
  });

  it('goes PRE_COPY, PRE_COPY_P2P, STOP_COPY with one session, and arrives equal', async () => {
    const source = made();
    source.port.contents = Uint8Array.from({ length: 9000 }, (_, i) => i & 0xff);
    const target = made();
    const wire = new Wire();
    await save(source, wire);
    expect(states(source.fake)).toEqual(['pre-copy', 'pre-copy-p2p', 'stop-copy']);
    expect(source.live.moved).toEqual({ preCopyBytes: 1000, stopCopyBytes: 9012 - 1000 });
    await load(target, wire);
    expect(target.port.state).toBe('stop');
    expect(target.port.contents).toEqual(source.port.contents);
    await target.live.quiesce();
    await target.live.run();
    expect(states(target.fake)).toEqual(['resuming', 'stop', 'running-p2p', 'running']);
    await source.live.handedOver();
    expect(source.port.state).toBe('stop');
    expect(source.port.sessionOpen).toBe(false);
  });

  it('without PRE_COPY goes RUNNING_P2P, STOP_COPY; without P2P straight to STOP_COPY', async () => {
    const noPreCopy = made({ preCopy: false });
    await save(noPreCopy, new Wire());
    expect(states(noPreCopy.fake)).toEqual(['running-p2p', 'stop-copy']);
    expect(noPreCopy.live.moved.preCopyBytes).toBe(0);
    const neither = made({ preCopy: false, p2p: false });
    await save(neither, new Wire());
    expect(states(neither.fake)).toEqual(['stop-copy']);
  });

  it('counts what is to come once: the stop-copy size holds unread pre-copy bytes', async () => {
    const { live } = made();
    await live.saveSetup();
    expect(await live.pending()).toEqual({ precopyInitial: 1000, precopy: 0, stopCopy: 5012 - 1000 });
    await live.iterate(new Wire(), 400);
    expect(await live.pending()).toEqual({ precopyInitial: 600, precopy: 0, stopCopy: 4012 });
  });

  it('is blocked without P2P states when the machine has several, and not when it is alone', () => {
    expect(made({ p2p: false }, 2).live.blocker()).toMatch(/P2P/);
    expect(made({ p2p: false }, 1).live.blocker()).toBeNull();
    expect(made({ p2p: true }, 2).live.blocker()).toBeNull();
  });
});

describe('a device that does not', () => {
  it('refuses STOP_COPY: it is put into STOP, and cancel() brings it back to RUNNING', async () => {
    const { fake, port, live } = made();
    fake.faults.push({ kind: 'refuse', target: 'stop-copy', lands: 'pre-copy-p2p' });
    await live.saveSetup();
    await live.quiesce();
    await expect(live.stop()).rejects.toThrow(/refused to go to stop-copy/);
    expect(port.state).toBe('stop');
    await live.cancel();
    expect(port.state).toBe('running');
    expect(fake.calls).not.toContain('reset');
  });

  it('refuses the recover state too: reset, then interrupts and command armed anew', async () => {
    const { fake, port, recoverable } = made();
    fake.faults.push({ kind: 'refuse', target: 'stop-copy', lands: 'running' });
    fake.faults.push({ kind: 'refuse', target: 'stop', lands: 'running' });
    await expect(transition(recoverable, 'stop-copy', 'stop')).rejects.toMatchObject({ code: 'device-reset' });
    expect(fake.calls.slice(-2)).toEqual(['reset', 'rearm']);
    expect(port.state).toBe('running');
  });

  it('falls into ERROR: no state is tried, only the reset', async () => {
    const { fake, port, live } = made();
    fake.faults.push({ kind: 'refuse', target: 'stop-copy', lands: 'error' });
    await live.saveSetup();
    await expect(live.stop()).rejects.toMatchObject({ code: 'device-reset' });
    expect(fake.calls.slice(-2)).toEqual(['reset', 'rearm']);
    expect(states(fake)).not.toContain('stop');
    expect(port.state).toBe('running');
  });

  it('cannot even be reset: it is named as lost', async () => {
    const { fake, port, live } = made();
    fake.faults.push({ kind: 'reset' });
    port.fail();
    await expect(live.cancel()).rejects.toMatchObject({ code: 'device-lost', message: /0000:65:00.0/ });
  });

  it('gives a short stream: the destination refuses it when RESUMING is left, and is reset', async () => {
    const source = made();
    const target = made();
    const wire = new Wire();
    source.fake.faults.push({ kind: 'short-read', after: 4000 });
    await save(source, wire);
    await expect(load(target, wire)).rejects.toThrow(/refused to go to stop/);
    expect(target.fake.calls.slice(-2)).toEqual(['reset', 'rearm']);
    await source.live.cancel();
    expect(source.port.state).toBe('running');
  });

  it('fails validation: RESUMING is left by reset only', async () => {
    const source = made();
    const target = made();
    const wire = new Wire();
    target.fake.faults.push({ kind: 'validation' });
    await save(source, wire);
    await expect(load(target, wire)).rejects.toMatchObject({ code: 'device-reset' });
    expect(target.port.state).toBe('running');
  });

  it('says ENOMSG in STOP_COPY: an error, not an endless wait', async () => {
    const { fake, live } = made();
    fake.faults.push({ kind: 'enomsg-in-stop-copy' });
    await live.saveSetup();
    await live.stop();
    await expect(live.drain(new Wire())).rejects.toThrow(/ENOMSG/);
  });

  it('opens a second session: it counts as reset behind our back, and cancel() still ends in RUNNING', async () => {
    const { fake, port, live } = made();
    await live.saveSetup();
    fake.faults.push({ kind: 'second-fd', target: 'stop-copy' });
    await expect(live.stop()).rejects.toThrow(/second data fd/);
    await live.cancel();
    expect(port.state).toBe('running');
    expect(port.sessionOpen).toBe(false);
  });

  it('is cancelled while RESUMING: no arc is tried, which would validate half a stream', async () => {
    const { fake, port, live } = made();
    await live.loadSetup();
    await live.cancel();
    expect(states(fake)).toEqual(['resuming']);
    expect(fake.calls).toContain('reset');
    expect(port.state).toBe('running');
  });

  it('can be cancelled from every state of the save side', async () => {
    const steps: ((live: VfioLive) => Promise<unknown>)[] = [
      (live) => live.saveSetup(),
      (live) => live.iterate(new Wire(), 100),
      (live) => live.quiesce(),
      (live) => live.stop(),
      (live) => live.drain(new Wire()),
    ];
    for (let reached = 0; reached <= steps.length; reached++) {
      const { fake, port, live } = made();
      for (const step of steps.slice(0, reached)) await step(live);
      await live.cancel();
      expect(port.state, `after ${reached} steps`).toBe('running');
      expect(port.sessionOpen).toBe(false);
      expect(fake.calls).not.toContain('reset');
    }
  });

  it('takes its time: this thread goes on meanwhile', async () => {
    const { fake, live } = made();
    fake.faults.push({ kind: 'block', target: 'pre-copy', ms: 500 });
    let ticks = 0;
    const timer = setInterval(() => {
      ticks += 1;
    }, 10);
    await live.saveSetup();
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(5);
  });
});
