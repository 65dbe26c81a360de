// Registers of a migration region and the pieces of its data section: one access of exactly the field's width, errors that name field and
// device, a deadline, and windows that are mapped where the driver allows it, once.
import { describe, expect, it } from 'vitest';
import type { RegionDoor } from '../../../devices/vfio/migration/region-door.ts';
import { SysError } from '../../../native/errno.ts';
import { DEVICE_FD, EIO, FIRST_REGION, LegacyKernel } from '../../fakes/legacy-kernel.ts';
import { NAME, regionDoor } from '../../fakes/legacy-live.ts';
import { MigrationRegionDevice } from '../../fakes/migration-region-device.ts';

const PAGE = 4096;
const STATE = { name: 'device_state', at: 0 };
const PENDING = { name: 'pending_bytes', at: 8 };
const place = (offset: number) => FIRST_REGION * 2 ** 40 + offset;

const made = (options: ConstructorParameters<typeof MigrationRegionDevice>[0] = {}) => {
  const kernel = new LegacyKernel(new MigrationRegionDevice(options));
  return { kernel, door: regionDoor(kernel), device: kernel.device as MigrationRegionDevice };
};

describe('a register', () => {
  it('is read and written by one access of its width at its place in the device fd', async () => {
    const { kernel, door } = made({ reservedBits: 0x80000000 });
    expect(await door.readU32(STATE)).toBe(0x80000001);
    await door.writeU32(STATE, 0x80000003);
    expect(await door.readU64(PENDING)).toBe(2032n);
    expect(kernel.accesses).toEqual(['read 0+0/4', 'write 0+0/4', 'read 0+8/8']);
    expect(door.fdPlace(5)).toEqual({ fd: DEVICE_FD, offset: place(5) });
  });

  it('names itself and its device when the driver refuses or answers short', async () => {
    const { door, device } = made();
    device.fail.push({ op: 'read', register: 'device_state', nth: 1 });
    device.fail.push({ op: 'write', register: 'device_state', nth: 1, short: 3 });
    await expect(door.readU32(STATE)).rejects.toMatchObject({
      code: 'vfio-region',
      message: `${NAME}: reading device_state of region 9 failed (EIO)`,
      cause: new SysError('pread', EIO),
    });
    await expect(door.writeU32(STATE, 1)).rejects.toThrow(
      `${NAME}: writing device_state of region 9 gave 3 instead of 4 bytes`,
    );
  });

  it('has a deadline; the next access waits for the one that is overdue', async () => {
    const { kernel } = made();
    const door = regionDoor(kernel, 0, 30);
    let release = () => {};
    kernel.stall = new Promise((done) => {
      release = done;
    });
    await expect(door.readU32(STATE)).rejects.toThrow(/device_state of region 9: no answer from the driver within/);
    await expect(door.readU32(STATE)).rejects.toThrow(/behind an access that is overdue: no answer/);
    expect(kernel.accesses).toEqual([]);
    kernel.stall = null;
    release();
    expect(await door.readU32(STATE)).toBe(0xabcd01);
    expect(kernel.accesses).toEqual(['read 0+0/4', 'read 0+0/4']);
  });
});

describe('the pieces of a data section', () => {
  const areas = [
    { start: 3 * PAGE, length: PAGE },
    { start: PAGE, length: PAGE },
  ];
  const shape = (pieces: ReturnType<RegionDoor['piecesOf']>) =>
    pieces.map((piece) => {
      if ('bytes' in piece) throw new Error('no bytes here');
      return [
        'mapping' in piece ? 'mapping' : piece.fd,
        'mapping' in piece ? piece.offset : piece.offset - place(0),
        piece.length,
      ];
    });

  it('are one of the fd where all is trapped, one mapping where all is mapped', () => {
    expect(shape(made().door.piecesOf(100, 50))).toEqual([[DEVICE_FD, 100, 50]]);
    const { door } = made({ areas: [{ start: PAGE, length: PAGE }] });
    expect(shape(door.piecesOf(PAGE + 16, 32))).toEqual([['mapping', 16, 32]]);
  });

  it('follow each other where a chunk spans both', () => {
    const { door } = made({ areas, size: 5 * PAGE });
    expect(shape(door.piecesOf(40, 5 * PAGE - 40))).toEqual([
      [DEVICE_FD, 40, PAGE - 40],
      ['mapping', 0, PAGE],
      [DEVICE_FD, 2 * PAGE, PAGE],
      ['mapping', 0, PAGE],
      [DEVICE_FD, 4 * PAGE, PAGE],
    ]);
    expect(shape(door.piecesOf(PAGE + 100, PAGE))).toEqual([
      ['mapping', 100, PAGE - 100],
      [DEVICE_FD, 2 * PAGE, 100],
    ]);
  });

  it('map each area once, when it is first needed, and unmap it at the end', () => {
    const { door, kernel } = made({ areas, size: 5 * PAGE });
    expect(kernel.mapped).toBe(0);
    door.piecesOf(0, 5 * PAGE);
    door.piecesOf(PAGE, 10);
    expect(kernel.mapped).toBe(2);
    door.close();
    expect(kernel.mapped).toBe(0);
  });

  it('are mapped in whole pages: what an area has beyond them is trapped', () => {
    const odd = [
      { start: PAGE, length: PAGE + 600 },
      { start: 4 * PAGE, length: 500 },
    ];
    const { door } = made({ areas: odd, size: 5 * PAGE });
    expect(shape(door.piecesOf(PAGE, 4 * PAGE))).toEqual([
      ['mapping', 0, PAGE],
      [DEVICE_FD, 2 * PAGE, 3 * PAGE],
    ]);
  });

  it('are trapped where the driver refuses the mmap that it offered', () => {
    const { door, kernel } = made({ areas, size: 5 * PAGE });
    kernel.refuseMmap = true;
    expect(shape(door.piecesOf(PAGE, PAGE))).toEqual([[DEVICE_FD, PAGE, PAGE]]);
  });
});

it('the scripted device refuses what the text calls undefined: other widths and places', () => {
  const { kernel, device } = made();
  for (const [offset, length] of [
    [0, 2],
    [0, 8],
    [2, 4],
    [8, 4],
    [12, 8],
    [9, 8],
  ] as const) {
    expect(() => kernel.pread(DEVICE_FD, place(offset), new Uint8Array(length))).toThrow(SysError);
    expect(() => kernel.pwrite(DEVICE_FD, place(offset), new Uint8Array(length))).toThrow(SysError);
  }
  expect(device.violations).toHaveLength(12);
});
