// 100,000 random RAM records, good and bad, into receivePages, against a model of a few lines: the same memory, the same CRC, the same
// counts, or a refusal at the same place. The seed is printed; FERRY_FUZZ_SEED repeats a run, FERRY_FUZZ_RECORDS makes it longer. With
// FERRY_ADDON naming a sanitizer build (scripts/sanitize.mjs) this is the target that looks for what C++ does wrong with a peer's bytes.
import { expect, it } from 'vitest';
import { kvmNode } from '../../native/addon.ts';
import { StreamError } from '../../native/errno.ts';
import { be64, concat, crc32c, cstr, PAGE, pair } from '../unit/native/channel-pair.ts';
import { generator } from './generator.ts';

const kvm = kvmNode();
const RECORDS = Number(process.env['FERRY_FUZZ_RECORDS'] ?? 100_000);
const SEED = Number(process.env['FERRY_FUZZ_SEED'] ?? Date.now() % 0x7fffffff);
const PAGES = 96;
const ZERO = 0x02;
const FULL = 0x08;
const EOS = 0x10;
const CONTINUE = 0x20;

interface Outcome {
  refused: boolean;
  pages: number;
  zeroPages: number;
  crc: number;
}

/** What the format says about `bytes`, applied to `memory`. Written from the format, not from the addon. */
function model(bytes: Uint8Array, memory: Uint8Array, named: { block: boolean }): Outcome {
  const outcome: Outcome = { refused: true, pages: 0, zeroPages: 0, crc: 0 };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const framing: Uint8Array[] = [];
  let at = 0;
  const take = (n: number) => {
    at += n;
    return bytes.subarray(at - n, at);
  };
  for (;;) {
    if (at + 8 > bytes.length) return outcome;
    const header = view.getBigUint64(at);
    framing.push(take(8));
    if (header === BigInt(EOS)) break;
    const flags = Number(header & 0xfffn);
    const kind = flags & ~CONTINUE;
    if (kind !== ZERO && kind !== FULL) return outcome;
    if (flags & CONTINUE) {
      if (!named.block) return outcome;
    } else {
      const length = bytes[at] ?? -1;
      if (length < 0 || at + 1 + length > bytes.length) return outcome;
      const name = take(1 + length);
      framing.push(name);
      if (String.fromCharCode(...name.subarray(1)) !== 'ram') return outcome;
      named.block = true;
    }
    const page = Number(header >> 12n);
    if (page >= PAGES) return outcome;
    const length = kind === ZERO ? 1 : PAGE;
    if (at + length > bytes.length) return outcome;
    const body = take(length);
    if (kind === ZERO) {
      framing.push(body);
      memory.fill(body[0] as number, page * PAGE, (page + 1) * PAGE);
      outcome.zeroPages++;
    } else {
      memory.set(body, page * PAGE);
      outcome.pages++;
    }
  }
  outcome.refused = at !== bytes.length;
  outcome.crc = crc32c(concat(framing));
  return outcome;
}

function randomStream(random: (below: number) => number, records: number, page: Uint8Array): Uint8Array {
  const parts: Uint8Array[] = [];
  let last = 0;
  for (let i = 0; i < records; i++) {
    const number = random(3) ? (last + 1) % PAGES : random(PAGES); // runs, as real streams have them
    last = number;
    const kind = random(3) ? FULL : ZERO;
    const bare = i > 0 && random(20) ? CONTINUE : 0;
    parts.push(be64((BigInt(number) << 12n) | BigInt(kind | bare)));
    if (!bare) parts.push(cstr('ram'));
    if (kind === ZERO) parts.push(Uint8Array.of(random(10) ? 0 : random(256)));
    else {
      const from = random(page.length - PAGE);
      parts.push(page.subarray(from, from + PAGE));
    }
  }
  parts.push(be64(BigInt(EOS)));
  return concat(parts);
}

/** One flipped bit, a random u64, a cut, or a stretch of noise, at a place that is more often framing than content. */
function spoil(random: (below: number) => number, stream: Uint8Array): Uint8Array {
  const near = Math.min(stream.length - 1, random(4) * (PAGE + 8) + random(24));
  const at = random(2) ? near : random(stream.length);
  const bytes = Uint8Array.from(stream);
  switch (random(4)) {
    case 0:
      bytes[at] = (bytes[at] as number) ^ (1 << random(8));
      return bytes;
    case 1:
      return bytes.subarray(0, at);
    case 2:
      for (let i = at; i < Math.min(at + 8, bytes.length); i++) bytes[i] = random(256);
      return bytes;
    default:
      for (let i = at; i < bytes.length; i++) bytes[i] = random(256);
      return bytes;
  }
}

it(`parses ${RECORDS} random records as the model does (seed ${SEED})`, async () => {
  console.log(`ram-records: FERRY_FUZZ_SEED=${SEED}`);
  const random = generator(SEED);
  const noise = new Uint8Array(8 * PAGE).map(() => random(256));
  let done = 0;
  let refusals = 0;
  while (done < RECORDS) {
    const count = 1 + random(120);
    done += count;
    const whole = randomStream(random, count, noise);
    const stream = random(3) ? whole : spoil(random, whole);
    const ram = kvm.createRam(PAGES * PAGE, { hugePages: false, populate: random(2) === 1 });
    const memory = new Uint8Array(PAGES * PAGE);
    const before = noise.subarray(0, PAGE);
    ram.copyIn(7 * PAGE, before);
    memory.set(before, 7 * PAGE);
    const expected = model(stream, memory, { block: false });
    const { a, b, close } = await pair();
    const writing = (async () => {
      for (let at = 0; at < stream.length; ) {
        const n = 1 + random(random(2) ? 9000 : 600_000);
        await a.write(stream.subarray(at, at + n));
        at += n;
      }
      await a.end();
    })().catch(() => {});
    const got = await b.receivePages(ram, 'ram', null).catch((error: unknown) => error);
    if (got instanceof Error) {
      refusals++;
      expect(got).toBeInstanceOf(StreamError);
      expect(expected.refused, `refused at seed ${SEED}: ${got.message}`).toBe(true);
    } else {
      // What follows an early end of section is the next reader's; the model calls that refused, and has no say here.
      const trailing = b.rxBytes < stream.length;
      expect(expected.refused, `accepted at seed ${SEED}`).toBe(trailing);
      expect(got).toMatchObject({ pages: expected.pages, zeroPages: expected.zeroPages, bytes: b.rxBytes });
      expect(b.rxCrc).toBe(expected.crc);
      const content = new Uint8Array(memory.length);
      ram.copyOut(0, content);
      expect(Buffer.compare(content, memory)).toBe(0);
    }
    close();
    await writing;
    ram.close();
  }
  expect(refusals).toBeGreaterThan(done / 120 / 20);
});
