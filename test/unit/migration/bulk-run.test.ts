// Device data into a data fd over real channels: records that have arrived go together, are counted once, and not where a device wants its
// chunks apart. migration/stream/device-section.ts; the native half: test/unit/native/channel-pump.test.ts.
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import type { ChunkSource } from '../../../devices/contract.ts';
import { receiveBulk, receiveBulkStart, sendBulk, startBulk } from '../../../migration/stream/device-section.ts';
import { StreamReader } from '../../../migration/stream/reader.ts';
import { StreamWriter } from '../../../migration/stream/writer.ts';
import { pair } from '../native/channel-pair.ts';

const dir = mkdtempSync(join(tmpdir(), 'ferry-bulk-'));
afterAll(() => rmSync(dir, { recursive: true }));
const CHUNK = Uint8Array.from({ length: 100 }, (_, i) => i * 3);

/** Ten chunks, all of them in the destination's socket before it reads the first; and a section behind them. */
async function load(loadChunk: (source: ChunkSource, length: number) => Promise<void>) {
  const { a, b, close } = await pair();
  const [writer, reader] = [new StreamWriter(a), new StreamReader(b)];
  const section = await startBulk(writer, 'd');
  await sendBulk(writer, 'part', section, async (sink) => {
    for (let n = 0; n < 10; n++) await sink.put(CHUNK);
  });
  await writer.ping(7);
  const start = await reader.next();
  if (start.kind !== 'start') throw new Error(start.kind);
  await receiveBulkStart(reader, start.section);
  const part = await reader.next();
  if (part.kind !== 'part') throw new Error(part.kind);
  const bytes = await receiveBulk(reader, part.section, { loadChunk });
  expect(await reader.next()).toEqual({ kind: 'ping', value: 7 });
  expect([b.rxBytes, b.rxCrc]).toEqual([a.txBytes, a.txCrc]);
  close();
  return bytes;
}

it('one pump takes the chunks that are there, and the section counts them all', async () => {
  const fd = openSync(join(dir, 'stream'), 'w');
  const asked: number[] = [];
  const bytes = await load(async (source, length) => {
    asked.push(length);
    await source.pump(fd, length);
  });
  expect([bytes, asked]).toEqual([1000, [100]]);
  expect(readFileSync(join(dir, 'stream'))).toEqual(Buffer.concat(Array(10).fill(CHUNK)));
  closeSync(fd);
});

it('a device that takes part of a chunk otherwise is asked for each, whatever it pumps first', async () => {
  const fd = openSync(join(dir, 'parts'), 'w');
  const taken: Uint8Array[] = [];
  const bytes = await load(async (source, length) => {
    await source.pump(fd, 60);
    taken.push(await source.take(length - 60));
  });
  expect([bytes, taken.length]).toEqual([1000, 10]);
  for (const rest of taken) expect([...rest]).toEqual([...CHUNK.subarray(60)]);
  expect(readFileSync(join(dir, 'parts'))).toEqual(Buffer.concat(Array(10).fill(CHUNK.subarray(0, 60))));
  closeSync(fd);
});
