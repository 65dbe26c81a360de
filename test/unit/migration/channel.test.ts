// The state machines over the real Channel (sockets, threads, RAM of the addon), and a real QEMU that loads our RAM: the stream is
// QEMU's, not only ours. The QEMU part is skipped where qemu-system-x86_64 is not installed.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { QmpClient } from '../../../control/qmp-client.ts';
import { receiveFrom } from '../../../migration/destination.ts';
import { migrateTo } from '../../../migration/source.ts';
import { connectPeer, listenForPeer } from '../../../migration/transport/uri.ts';
import type { Machine } from '../../../vmm/api.ts';
import { OPTIONS, receiveHost } from '../../fakes/migration-pair.ts';
import { ramMachine } from '../../fakes/ram-machine.ts';

const MIB = 1 << 20;
let directory = '';
let undo: (() => void | Promise<void>)[] = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'ferry-channel-'));
});
afterEach(async () => {
  for (const step of undo.reverse()) await step();
  undo = [];
  rmSync(directory, { recursive: true });
});

/** Every other page has contents of its own. */
function filled(size: number): ReturnType<typeof ramMachine> {
  const machine = ramMachine(size, 'running');
  const page = new Uint8Array(4096);
  for (let at = 0; at < size; at += 8192) {
    page.fill(1 + ((at / 8192) % 250));
    new DataView(page.buffer).setUint32(8, at);
    machine.ram.copyIn(at, page);
  }
  undo.push(() => machine.close());
  return machine;
}

describe.each(['tcp:127.0.0.1:0', 'unix'])('over %s', (kind) => {
  it('RAM, state and hand-over go through, page for page', async () => {
    const source = filled(64 * MIB);
    const listener = await listenForPeer(kind === 'unix' ? `unix:${join(directory, 'mig')}` : kind);
    const accepted = listener.accept();
    const peer = await connectPeer(listener.uri);
    let built: ReturnType<typeof ramMachine> | null = null;
    const incoming = receiveFrom(await accepted, receiveHost([]), {
      checkCpuContract: () => [],
      buildForIncoming: async (config) => {
        built = ramMachine(config.memory, 'inmigrate');
        return built;
      },
    });
    undo.push(async () => {
      listener.close();
      await built?.close();
    });
    const outcome = await migrateTo(source, peer, OPTIONS).done;
    expect(outcome.error).toBeNull();
    const there: Machine = await incoming.machine;
    expect(there.state).toBe('running');
    expect(source.state).toBe('postmigrate');
    expect(await there.ram.hash(0, 64 * MIB)).toBe(await source.ram.hash(0, 64 * MIB));
    expect(outcome.report.bytes.zeroPages).toBe((32 * MIB) / 4096);
  });

  it('a destination that is gone in the middle of the RAM leaves the guest running at the source', async () => {
    const source = filled(64 * MIB);
    const listener = await listenForPeer(kind === 'unix' ? `unix:${join(directory, 'mig')}` : kind);
    const accepted = listener.accept();
    const peer = await connectPeer(listener.uri);
    const destination = await accepted;
    undo.push(() => listener.close());
    const migration = migrateTo(source, peer, { ...OPTIONS, peerIsQemu: true });
    await destination.read(8 * MIB);
    destination.abort();
    const outcome = await migration.done;
    expect(outcome.status).toBe('failed');
    expect(outcome.error).not.toBe('');
    expect(source.state).toBe('running');
  });

  it('maxBandwidth holds, and lifting it by setLimits takes effect', async () => {
    const source = filled(16 * MIB);
    const listener = await listenForPeer(kind === 'unix' ? `unix:${join(directory, 'mig')}` : kind);
    const accepted = listener.accept();
    const peer = await connectPeer(listener.uri);
    const destination = await accepted;
    undo.push(() => listener.close());
    const migration = migrateTo(source, peer, { ...OPTIONS, maxBandwidth: 4 * MIB, peerIsQemu: true });
    const began = performance.now();
    await destination.read(3 * MIB);
    const slow = performance.now() - began;
    migration.setLimits({ maxBandwidth: 0 });
    await destination.read(4 * MIB);
    const fast = performance.now() - began - slow;
    expect(fast).toBeLessThan(slow);
    migration.cancel();
    expect((await migration.done).status).toBe('cancelled');
  });
});

const QEMU = '/usr/bin/qemu-system-x86_64';
const qemu = existsSync(QEMU) ? describe : describe.skip;
if (!existsSync(QEMU)) console.log(`skipped: ${QEMU} is not installed, so no real QEMU loads our RAM`);

qemu('a real QEMU', () => {
  it('-machine none loads our RAM page for page and answers with SHUT(0)', async () => {
    const size = 32 * MIB;
    const source = filled(size);
    const sockets = { qmp: join(directory, 'qmp'), mig: join(directory, 'mig') };
    const child = spawn(
      QEMU,
      [
        ...['-machine', 'none', '-m', '32M', '-S', '-nodefaults', '-display', 'none', '-accel', 'tcg'],
        ...['-qmp', `unix:${sockets.qmp},server=on,wait=off`, '-incoming', `unix:${sockets.mig}`],
      ],
      { stdio: ['ignore', 'inherit', 'inherit'] },
    );
    undo.push(() => void child.kill('SIGKILL'));
    await until(() => existsSync(sockets.mig) && existsSync(sockets.qmp));
    const qmp = await QmpClient.connect(sockets.qmp);
    const outcome = await migrateTo(source, await connectPeer(`unix:${sockets.mig}`), { ...OPTIONS, peerIsQemu: true })
      .done;
    expect(outcome.error).toBeNull();
    expect(outcome.status).toBe('completed');
    expect(source.state).toBe('postmigrate');
    const dump = join(directory, 'ram');
    await qmp.execute('pmemsave', { val: 0, size, filename: dump });
    const there = readFileSync(dump);
    expect(there.length).toBe(size);
    const page = new Uint8Array(4096);
    for (let at = 0; at < size; at += 4096) {
      source.ram.copyOut(at, page);
      if (Buffer.compare(page, there.subarray(at, at + 4096)) !== 0) throw new Error(`the page at ${at} differs`);
    }
    expect(await qmp.execute('query-migrate')).toMatchObject({ status: 'completed' });
  });

  it('of another RAM size refuses, and the guest goes on here', async () => {
    const source = filled(16 * MIB);
    const mig = join(directory, 'mig');
    const child = spawn(
      QEMU,
      [
        '-machine',
        'none',
        '-m',
        '32M',
        '-S',
        '-nodefaults',
        '-display',
        'none',
        '-accel',
        'tcg',
        '-incoming',
        `unix:${mig}`,
      ],
      { stdio: 'ignore' },
    );
    undo.push(() => void child.kill('SIGKILL'));
    await until(() => existsSync(mig));
    const outcome = await migrateTo(source, await connectPeer(`unix:${mig}`), { ...OPTIONS, peerIsQemu: true }).done;
    expect(outcome.status).toBe('failed');
    expect(source.state).toBe('running');
  });
});

async function until(there: () => boolean): Promise<void> {
  for (let n = 0; n < 600 && !there(); n += 1) await new Promise((resolve) => setTimeout(resolve, 50));
  if (!there()) throw new Error('QEMU did not come up within 30 s');
}
