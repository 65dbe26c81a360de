// RAM against a real QEMU: it loads what sendPages writes, receivePages loads what it writes, byte for byte (facts: qemu-compat.md, B).
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { Qemu } from '../../../bench/ram-qemu.ts';
import { type GuestRam, kvmNode, type SocketAddress } from '../../../native/addon.ts';
import { PAGE, stripe } from './channel-pair.ts';
import { receiveStream, sendStream } from './qemu-stream.ts';

const kvm = kvmNode();
const BYTES = 64 * 1024 * 1024;
const dir = mkdtempSync(join(tmpdir(), 'ferry-qemu-'));
afterAll(() => rmSync(dir, { recursive: true }));

function qemuMissing(): string | null {
  try {
    execFileSync('qemu-system-x86_64', ['--version'], { stdio: 'ignore' });
    return null;
  } catch {
    return 'qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)';
  }
}
const missing = qemuMissing();
if (missing) console.warn(`qemu-interop is skipped: ${missing}`);

/** Compares RAM with a file page by page; a page number, or null when they are the same. */
function firstDifference(ram: GuestRam, path: string): number | null {
  const fd = openSync(path, 'r');
  const [ours, theirs] = [Buffer.alloc(PAGE), Buffer.alloc(PAGE)];
  try {
    for (let page = 0; page < BYTES / PAGE; page++) {
      ram.copyOut(page * PAGE, ours);
      readSync(fd, theirs, 0, PAGE, page * PAGE);
      if (!ours.equals(theirs)) return page;
    }
    return null;
  } finally {
    closeSync(fd);
  }
}
function fileOf(name: string, ram: GuestRam | null): string {
  const path = join(dir, name);
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, BYTES);
  const page = Buffer.alloc(PAGE);
  for (let n = 0; ram !== null && n < BYTES / PAGE; n++) {
    ram.copyOut(n * PAGE, page);
    writeSync(fd, page, 0, PAGE, n * PAGE);
  }
  closeSync(fd);
  return path;
}
const newRam = () => kvm.createRam(BYTES, { hugePages: false, populate: false });
const qemuOptions = (memoryFile: string, incoming: boolean) => ({
  memoryFile,
  bytes: BYTES,
  preallocate: false,
  incoming,
});

describe.skipIf(missing !== null)('a real QEMU', () => {
  it('loads the RAM that we send, over TCP', async () => {
    const ram = newRam();
    stripe(ram);
    const bitmap = kvm.createBitmap(BYTES / PAGE);
    bitmap.fill();
    const file = fileOf('qemu-loads', null);
    const qemu = await Qemu.start(qemuOptions(file, true));
    const uri = await qemu.listen('tcp:127.0.0.1:0');
    const address: SocketAddress = { family: 'inet', host: '127.0.0.1', port: Number(uri.split(':')[2]), path: '' };
    const channel = kvm.channel(await kvm.connect(address, 10_000));
    await sendStream(channel, ram, bitmap, 'ram');
    await channel.end();
    await qemu.migrated();
    expect(firstDifference(ram, file)).toBe(null);
    await qemu.quit();
    channel.abort();
  });

  it('sends RAM that we load, over UNIX', async () => {
    const original = newRam();
    stripe(original);
    const qemu = await Qemu.start(qemuOptions(fileOf('qemu-sends', original), false));
    const path = join(dir, 'socket');
    const listener = kvm.listen({ family: 'unix', host: '', port: 0, path });
    const accepted = kvm.accept(listener);
    await qemu.command('migrate', { uri: `unix:${path}` });
    const channel = kvm.channel(await accepted);
    const ram = newRam();
    await receiveStream(channel, ram, 'ram');
    expect(ram.resident()).toBe(BYTES / 2); // its zero pages cost nothing here
    expect(await ram.hash(0, BYTES)).toBe(await original.hash(0, BYTES));
    await qemu.quit();
    channel.abort();
    kvm.closeListener(listener);
  });

  it('refuses our stream when it is not its own machine, and we see the connection end', async () => {
    const ram = kvm.createRam(BYTES / 2, { hugePages: false, populate: false });
    stripe(ram);
    const bitmap = kvm.createBitmap(BYTES / 2 / PAGE);
    bitmap.fill();
    const qemu = await Qemu.start(qemuOptions(fileOf('qemu-refuses', null), true));
    const path = join(dir, 'socket2');
    await qemu.listen(`unix:${path}`);
    const channel = kvm.channel(await kvm.connect({ family: 'unix', host: '', port: 0, path }, 10_000));
    const sending = sendStream(channel, ram, bitmap, 'ram').catch((error: unknown) => String(error));
    expect(await qemu.ended).toBe(1);
    expect(qemu.errors).toContain('Size mismatch');
    expect(await sending).toMatch(/the connection broke while sending/);
    channel.abort();
  });
});
