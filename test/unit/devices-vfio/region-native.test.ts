// The migration region over the addon itself, with files for the device's regions: registers, mapped and trapped pieces through a real
// channel, and bits from a region into a native bitmap. The scripted kernel of the other tests stands for the same calls.
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { RegionDoor } from '../../../devices/vfio/migration/region-door.ts';
import { kvmNode } from '../../../native/addon.ts';
import { NAME } from '../../fakes/legacy-live.ts';
import { pair } from '../native/channel-pair.ts';

const kvm = kvmNode();
const PAGE = 4096;
/** Of each region that was made. */
const made: { readonly dir: string; readonly fd: number }[] = [];
afterAll(() => {
  for (const { dir, fd } of made) {
    closeSync(fd);
    rmSync(dir, { recursive: true });
  }
});

/** A region at a page of a file, the second and third page of which can be mapped. */
function region(name: string, size: number): { door: RegionDoor; path: string } {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-region-'));
  const path = join(dir, name);
  writeFileSync(path, new Uint8Array(PAGE + size));
  const fd = openSync(path, 'r+');
  made.push({ dir, fd });
  const place = {
    index: 9,
    size,
    readable: true,
    writable: true,
    areas: [{ start: PAGE, length: 2 * PAGE }],
    type: { type: 3, subtype: 1 },
    fdOffset: PAGE,
  };
  return { door: new RegionDoor({ door: kvm, fd, name: NAME, region: place, deadlineMs: 5000 }), path };
}

describe('a region over the addon', () => {
  it('has its registers where its fd has them', async () => {
    const { door, path } = region('registers', PAGE);
    await door.writeU64({ name: 'data_size', at: 24 }, 2 ** 33 + 5);
    expect(readFileSync(path).readBigUInt64LE(PAGE + 24)).toBe(2n ** 33n + 5n);
    expect(await door.readU64({ name: 'data_size', at: 24 })).toBe(2n ** 33n + 5n);
    expect(await door.readU32({ name: 'data_size', at: 24 })).toBe(5);
    await expect(door.readU64({ name: 'pending_bytes', at: PAGE - 4 })).rejects.toThrow(/gave 4 instead of 8 bytes/);
  });

  it('gives a chunk that spans trapped and mapped parts to another one, byte for byte', async () => {
    const from = region('from', 5 * PAGE);
    const to = region('to', 5 * PAGE);
    const offset = PAGE - 100;
    const bytes = Uint8Array.from({ length: 2 * PAGE + 300 }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
    await from.door.write({ name: 'data', at: offset }, bytes);
    const channels = await pair();
    const pieces = from.door.piecesOf(offset, bytes.length);
    expect(pieces.map((piece) => ('mapping' in piece ? 'mapping' : 'fd'))).toEqual(['fd', 'mapping', 'fd']);
    const sent = channels.a.pumpPiecesFrom(pieces, 7n);
    const head = await channels.b.read(16);
    expect(new DataView(head.buffer, head.byteOffset).getBigUint64(8)).toBe(BigInt(bytes.length));
    await channels.b.pumpPiecesTo(to.door.piecesOf(offset, bytes.length));
    await sent;
    channels.close();
    from.door.close();
    to.door.close();
    const arrived = readFileSync(to.path).subarray(PAGE + offset, PAGE + offset + bytes.length);
    expect(Buffer.compare(arrived, bytes)).toBe(0);
  });

  it('gives its bits to a bitmap, by granules of the device', async () => {
    const { door } = region('bits', PAGE);
    await door.write({ name: 'bits', at: 64 }, Uint8Array.of(0b101, 0, 0b1));
    const bitmap = kvm.createBitmap(1024);
    await door.orBits({ offset: 64, bits: 17 }, bitmap, 0x10000, 2 * PAGE);
    expect([...bitmap.runs(0, 10)]).toEqual([16, 2, 20, 2, 48, 2]);
    await expect(door.orBits({ offset: PAGE - 1, bits: 64 }, bitmap, 0, PAGE)).rejects.toThrow(
      /reading the dirty bitmap in region 9 failed \(EIO\)/,
    );
    bitmap.close();
  });
});
