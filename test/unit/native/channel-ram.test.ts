// RAM records between two Channels: identical memory, zero pages that stay unallocated, going on where a call stopped, the rate limit,
// and refusal of everything that is not a valid record. Format: QEMU's version-3 stream (docs/stream.md).
import { fstatSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { Channel, GuestRam } from '../../../native/addon.ts';
import { kvmNode } from '../../../native/addon.ts';
import { StreamError, SysError } from '../../../native/errno.ts';
import { be64, CONTINUE, concat, crc32c, cstr, EOS, FULL_PAGE, PAGE, pair, stripe, ZERO } from './channel-pair.ts';

const kvm = kvmNode();
const MIB = 1024 * 1024;
const ALL = { from: 0, maxPages: Number.MAX_SAFE_INTEGER, bytesPerSecond: 0 };
const ram = (size: number, populate = false) => kvm.createRam(size, { hugePages: false, populate });
const caught = (promise: Promise<unknown>) => promise.then(() => null).catch((error: unknown) => error);
function everyPage(memory: GuestRam) {
  const bits = kvm.createBitmap(memory.size / PAGE);
  bits.fill();
  return bits;
}
async function sendAll(channel: Channel, memory: GuestRam) {
  const sent = await channel.sendPages(memory, everyPage(memory), 'ram', ALL);
  await channel.write(be64(EOS));
  return sent;
}

for (const kind of ['tcp', 'unix'] as const) {
  for (const populate of [false, true]) {
    it(`is the same memory afterwards, over ${kind}, ${populate ? 'with' : 'without'} the destination allocated`, async () => {
      const { a, b, close } = await pair(kind);
      const [from, to] = [ram(32 * MIB), ram(32 * MIB, populate)];
      const written = stripe(from);
      const receiving = b.receivePages(to, 'ram', null);
      const sent = await sendAll(a, from);
      const got = await receiving;
      expect(sent).toMatchObject({ pages: written, zeroPages: 8192 - written, next: 8192 });
      expect(got).toMatchObject({ pages: written, zeroPages: 8192 - written, bytes: sent.bytes + 8 });
      expect(a.txBytes).toBe(sent.bytes + 8);
      expect(b.rxBytes).toBe(a.txBytes);
      expect(b.rxCrc).toBe(a.txCrc);
      expect(await to.hash(0, to.size)).toBe(await from.hash(0, from.size));
      close();
    });
  }
}

describe('zero pages', () => {
  it('cost neither side an allocation when nobody wrote them', async () => {
    const { a, b, close } = await pair();
    const [from, to] = [ram(64 * MIB), ram(64 * MIB)];
    from.copyIn(5 * PAGE, new Uint8Array(PAGE).fill(9));
    const receiving = b.receivePages(to, 'ram', null);
    await sendAll(a, from);
    await receiving;
    expect(from.resident()).toBe(PAGE);
    expect(to.resident()).toBe(PAGE);
    close();
  });

  it('clear what an earlier record, or somebody before, has written there', async () => {
    const { a, b, close } = await pair();
    const [from, to] = [ram(MIB), ram(MIB)];
    to.copyIn(200 * PAGE, Uint8Array.of(1, 2, 3)); // before the channel ever saw this RAM
    stripe(from);
    for (let round = 0; round < 2; round++) {
      const receiving = b.receivePages(to, 'ram', null);
      await sendAll(a, from);
      await receiving;
      expect(await to.hash(0, to.size)).toBe(await from.hash(0, from.size));
      from.copyIn(0, new Uint8Array(16 * PAGE));
      from.copyIn(9 * PAGE, Uint8Array.of(1));
    }
    close();
  });

  it('are written out when their fill byte is not zero', async () => {
    const { a, b, close } = await pair();
    const to = ram(4 * PAGE);
    await a.write(concat([be64(BigInt(PAGE) | ZERO), cstr('ram'), Uint8Array.of(0x5a), be64(EOS)]));
    expect(await b.receivePages(to, 'ram', null)).toEqual({ pages: 0, zeroPages: 1, bytes: 21 });
    const page = new Uint8Array(PAGE);
    to.copyOut(PAGE, page);
    expect(page.every((byte) => byte === 0x5a)).toBe(true);
    close();
  });
});

describe('sendPages', () => {
  it('writes the bytes of the format, and clears the bits it took', async () => {
    const { a, b, close } = await pair();
    const memory = ram(8 * PAGE);
    const page = new Uint8Array(PAGE).map((_, i) => i + 1);
    memory.copyIn(2 * PAGE, page);
    const bits = kvm.createBitmap(8);
    bits.set(1, 2);
    bits.set(7, 1);
    const expected = concat([
      be64(BigInt(PAGE) | ZERO),
      cstr('pc.ram'),
      Uint8Array.of(0),
      be64(BigInt(2 * PAGE) | FULL_PAGE | CONTINUE),
      page,
      be64(BigInt(7 * PAGE) | ZERO | CONTINUE),
      Uint8Array.of(0),
    ]);
    const sent = await a.sendPages(memory, bits, 'pc.ram', ALL);
    expect(sent).toEqual({ pages: 1, zeroPages: 2, bytes: expected.length, next: 8 });
    expect(Buffer.compare(await b.read(expected.length), expected)).toBe(0);
    expect(bits.count).toBe(0);
    const framing = concat([expected.subarray(0, 24), expected.subarray(24 + PAGE)]);
    expect(a.txCrc).toBe(crc32c(framing)); // page contents are not in it
    close();
  });

  it('stops after maxPages and goes on from `next`, each page once', async () => {
    const { a, b, close } = await pair();
    const [from, to] = [ram(16 * MIB), ram(16 * MIB)];
    stripe(from);
    const bits = everyPage(from);
    const receiving = b.receivePages(to, 'ram', null);
    let at = 0;
    let pages = 0;
    let calls = 0;
    while (at < bits.pages) {
      const before = bits.count;
      const sent = await a.sendPages(from, bits, 'ram', { from: at, maxPages: 333, bytesPerSecond: 0 });
      expect(before - bits.count).toBe(sent.pages + sent.zeroPages);
      expect(sent.pages + sent.zeroPages).toBe(Math.min(333, before));
      pages += sent.pages + sent.zeroPages;
      at = sent.next;
      calls++;
    }
    expect(pages).toBe(4096);
    expect(calls).toBe(Math.ceil(4096 / 333));
    await a.write(be64(EOS));
    await receiving;
    expect(await to.hash(0, to.size)).toBe(await from.hash(0, from.size));
    close();
  });

  it('leaves the bits before `from`, and sees again what is set behind it', async () => {
    const { a, b, close } = await pair();
    const memory = ram(256 * PAGE);
    const bits = kvm.createBitmap(256);
    bits.fill();
    const sent = await a.sendPages(memory, bits, 'ram', { from: 70, maxPages: 10, bytesPerSecond: 0 });
    expect(sent).toMatchObject({ zeroPages: 10, next: 80 });
    expect([...bits.runs(0, 10)]).toEqual([0, 70, 80, 176]);
    bits.set(75, 1);
    const rest = await a.sendPages(memory, bits, 'ram', { ...ALL, from: sent.next });
    expect(rest).toMatchObject({ zeroPages: 176, next: 256 });
    expect([...bits.runs(0, 10)]).toEqual([0, 70, 75, 1]);
    expect(await a.sendPages(memory, bits, 'ram', ALL)).toMatchObject({ zeroPages: 71 });
    expect(await a.sendPages(memory, bits, 'ram', ALL)).toEqual({ pages: 0, zeroPages: 0, bytes: 0, next: 256 });
    await b.read(1);
    close();
  });

  it('keeps to bytesPerSecond, and not to much less', async () => {
    const { a, b, close } = await pair();
    const [from, to] = [ram(8 * MIB), ram(8 * MIB)];
    from.copyIn(0, new Uint8Array(8 * MIB).fill(3));
    const receiving = b.receivePages(to, 'ram', null);
    const bits = everyPage(from);
    const began = performance.now();
    let bytes = 0;
    // In slices, as migration does: the limit holds over calls, not within each.
    for (let at = 0; at < bits.pages; ) {
      const sent = await a.sendPages(from, bits, 'ram', { from: at, maxPages: 256, bytesPerSecond: 16 * MIB });
      bytes += sent.bytes;
      at = sent.next;
    }
    const seconds = (performance.now() - began) / 1000;
    expect(bytes / seconds).toBeLessThan(16 * MIB * 1.15);
    expect(bytes / seconds).toBeGreaterThan((16 * MIB) / 10);
    await a.write(be64(EOS));
    await receiving;
    close();
  });

  it('is aborted while it waits for its turn, and while the peer does not read', async () => {
    for (const bytesPerSecond of [1, 0]) {
      const { a, b, close } = await pair();
      const from = ram(32 * MIB);
      from.copyIn(0, new Uint8Array(32 * MIB).fill(3));
      const sending = caught(a.sendPages(from, everyPage(from), 'ram', { ...ALL, bytesPerSecond }));
      await b.read(8);
      await new Promise((resolve) => setTimeout(resolve, 20));
      a.abort();
      expect(((await sending) as SysError).code).toBe('ECANCELED');
      close();
    }
  });

  it('goes on with the mapping it has when guest RAM is closed meanwhile', async () => {
    const { a, b, close } = await pair();
    const from = ram(32 * MIB);
    stripe(from);
    const hash = await from.hash(0, from.size);
    const bits = everyPage(from);
    const sending = a.sendPages(from, bits, 'ram', ALL);
    from.close();
    bits.close();
    const to = ram(32 * MIB);
    const receiving = b.receivePages(to, 'ram', null);
    await sending;
    await a.write(be64(EOS));
    await receiving;
    expect(await to.hash(0, to.size)).toBe(hash);
    close();
  });
});

describe('receivePages', () => {
  const page = new Uint8Array(PAGE).fill(0xee);
  const good = concat([be64(0n | FULL_PAGE), cstr('ram'), page]);
  const refusals: [string, Uint8Array, string][] = [
    ['unknown flags', be64(0x200n), 'flags 0x200'],
    ['no flags', be64(BigInt(PAGE)), 'flags 0x0'],
    ['two kinds at once', be64(ZERO | FULL_PAGE), 'flags 0xa'],
    ['an end of section with an offset', be64(BigInt(PAGE) | EOS), 'flags 0x10'],
    ['the first size record in the middle', be64(0x4n), 'flags 0x4'],
    ['another block', concat([be64(FULL_PAGE), cstr('pc.bios'), page]), 'block "pc.bios"; this machine has "ram"'],
    ['a longer name', concat([be64(FULL_PAGE), cstr('ram2'), page]), 'block "ram2"'],
    ['a name with bytes in it', concat([be64(FULL_PAGE), cstr('r\u0001m'), page]), 'block "r?m"'],
    ['CONTINUE before any name', concat([be64(FULL_PAGE | CONTINUE), page]), 'before any block was named'],
    [
      'a page beyond the end',
      concat([be64(BigInt(MIB) | FULL_PAGE), cstr('ram'), page]),
      'at offset 0x100000, outside',
    ],
    ['a page far beyond', concat([be64((1n << 63n) | FULL_PAGE), cstr('ram'), page]), 'outside of the block'],
    ['a last page that is not whole', concat([be64(BigInt(MIB - PAGE + 1) | FULL_PAGE), cstr('ram'), page]), 'flags'],
  ];
  for (const [what, bytes, says] of refusals) {
    it(`refuses ${what}, and writes nothing for it`, async () => {
      const { a, b, close } = await pair();
      const to = ram(MIB);
      await a.write(bytes);
      await a.end();
      const error = await caught(b.receivePages(to, 'ram', null));
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toContain(says);
      expect(to.resident()).toBe(0);
      // The direction is at an unknown place now: whatever is asked next fails the same way, and abort() still works.
      expect(String(await caught(b.read(1)))).toContain(says);
      close();
    });
  }

  it('refuses a stream that ends anywhere before its end of section', async () => {
    const whole = concat([good, be64(BigInt(PAGE) | ZERO | CONTINUE), Uint8Array.of(0), be64(EOS)]);
    for (const length of [0, 1, 7, 8, 9, 11, 12, 13, 2000, good.length, good.length + 5, whole.length - 1]) {
      const { a, b, close } = await pair();
      await a.write(whole.subarray(0, length));
      await a.end();
      const error = await caught(b.receivePages(ram(MIB), 'ram', null));
      expect(error).toBeInstanceOf(StreamError);
      expect(String(error)).toContain('the stream ended while reading RAM pages');
      close();
    }
  });

  it('is refused, or shows in the CRC, when any byte outside page contents is flipped', async () => {
    const sent = concat([good, be64(BigInt(PAGE) | ZERO | CONTINUE), Uint8Array.of(0), be64(EOS)]);
    const framing = [...sent.keys()].filter((at) => at < 12 || at >= good.length);
    const right = crc32c(Uint8Array.from(framing.map((at) => sent[at] as number)));
    for (const at of framing) {
      for (const bit of [0, 3, 7]) {
        const { a, b, close } = await pair();
        const bytes = Uint8Array.from(sent);
        bytes[at] = (bytes[at] as number) ^ (1 << bit);
        await a.write(bytes);
        await a.end();
        const error = await caught(b.receivePages(ram(MIB), 'ram', null));
        if (error === null) expect(b.rxCrc).not.toBe(right);
        else expect(error).toBeInstanceOf(StreamError);
        close();
      }
    }
  });

  it('takes a header that was read before, and leaves what follows the end of section', async () => {
    const { a, b, close } = await pair();
    const to = ram(MIB);
    await a.write(concat([good, be64(EOS), Uint8Array.of(0x7e, 1, 2, 3)]));
    const header = new DataView((await b.read(8)).buffer).getBigUint64(0);
    expect(await b.receivePages(to, 'ram', header)).toEqual({ pages: 1, zeroPages: 0, bytes: good.length + 8 });
    expect([...(await b.read(4))]).toEqual([0x7e, 1, 2, 3]);
    // QEMU may go on with CONTINUE in a later section: the block is still the same.
    await a.write(concat([be64(BigInt(5 * PAGE) | FULL_PAGE | CONTINUE), page, be64(EOS)]));
    expect(await b.receivePages(to, 'ram', null)).toMatchObject({ pages: 1 });
    expect(await b.receivePages(to, 'ram', EOS)).toEqual({ pages: 0, zeroPages: 0, bytes: 8 });
    close();
  });

  it('lets go of guest RAM when the channel ends, not when it is collected', async () => {
    const { a, b, close } = await pair();
    const to = ram(32 * MIB, true);
    await a.write(be64(EOS));
    await b.receivePages(to, 'ram', null);
    await a.write(concat([good, be64(EOS)]));
    await b.receivePages(to, 'ram', null);
    const inode = ` ${fstatSync(to.fd).ino} `;
    const mapped = () => readFileSync('/proc/self/maps', 'utf8').includes(inode);
    expect(mapped()).toBe(true);
    to.close();
    expect(mapped()).toBe(true); // by the channel
    close();
    for (let i = 0; i < 400 && mapped(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(mapped()).toBe(false);
    expect(b.fd).toBe(-1); // still referenced here
  });

  it('is aborted while it waits', async () => {
    const { a, b, close } = await pair();
    const receiving = caught(b.receivePages(ram(MIB), 'ram', null));
    await a.write(good.subarray(0, 2000));
    await new Promise((resolve) => setTimeout(resolve, 20));
    b.abort();
    const error = await receiving;
    expect(error).toBeInstanceOf(SysError);
    expect((error as SysError).code).toBe('ECANCELED');
    close();
  });
});
