// vmm/bus.ts: who answers which access. Rules: architecture.md flow (a), devices/contract.ts AddressSpace and Region.
import { describe, expect, it } from 'vitest';
import type { FastWindow, Region, Space } from '../../../devices/contract.ts';
import { VmmError } from '../../../native/errno.ts';
import { Bus, type FastPort } from '../../../vmm/bus.ts';

type Access = ['r' | 'w', number, number, number?] | ['R' | 'W', number, bigint?];

/** Registers that remember what was done to them; reads answer from `memory`. */
function memoryRegion(name: string, size: number, options: { wide?: boolean; fast?: FastWindow } = {}) {
  const log: Access[] = [];
  const memory = new Uint8Array(size + 8);
  const view = new DataView(memory.buffer);
  const region: Region = {
    name,
    size,
    read(offset, width) {
      log.push(['r', offset, width]);
      return width === 1
        ? view.getUint8(offset)
        : width === 2
          ? view.getUint16(offset, true)
          : view.getUint32(offset, true);
    },
    write(offset, width, value) {
      log.push(['w', offset, width, value]);
      if (width === 1) view.setUint8(offset, value);
      else if (width === 2) view.setUint16(offset, value, true);
      else view.setUint32(offset, value, true);
    },
    wide: options.wide
      ? {
          read: (offset) => {
            log.push(['R', offset]);
            return view.getBigUint64(offset, true);
          },
          write: (offset, value) => {
            log.push(['W', offset, value]);
            view.setBigUint64(offset, value, true);
          },
        }
      : null,
    fast: options.fast ?? null,
  };
  return { region, log, memory };
}

function fastPort() {
  let next = 1;
  const live = new Map<number, { space: Space; base: number; size: number }>();
  const drains: number[] = [];
  const port: FastPort = {
    addFast(space, base, size) {
      live.set(next, { space, base, size });
      return next++;
    },
    removeFast: (id) => void live.delete(id),
    drainPosted: () => void drains.push(live.size),
  };
  return { port, live, drains };
}

function bus(reserved: { name: string; start: number; end: number }[] = []) {
  const fast = fastPort();
  return { bus: new Bus(fast.port, reserved), fast };
}

const data = new DataView(new ArrayBuffer(16));
function readMmio(b: Bus, gpa: number, length: number): bigint {
  data.setBigUint64(0, 0n);
  b.readMmio(gpa, length, data, 0);
  return data.getBigUint64(0, true);
}
function writeMmio(b: Bus, gpa: number, length: number, value: bigint): void {
  data.setBigUint64(0, value, true);
  b.writeMmio(gpa, length, data, 0);
}

describe('ports', () => {
  it('an unclaimed port reads all-ones in every width and forgets writes', () => {
    const { bus: b } = bus();
    expect([b.readPort(0x80, 1), b.readPort(0x80, 2), b.readPort(0x80, 4)]).toEqual([0xff, 0xffff, 0xffffffff]);
    b.writePort(0x80, 4, 0x12345678);
    expect(b.readPort(0x80, 4)).toBe(0xffffffff);
  });

  it('tells a region offsets, never its base', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 8);
    b.claim({ space: 'pio', base: 0x3f8, region: r.region });
    b.writePort(0x3fa, 2, 0xbeef);
    expect(r.log).toEqual([['w', 2, 2, 0xbeef]]);
    expect(b.readPort(0x3fa, 2)).toBe(0xbeef);
  });

  it('an access that leaves a region goes byte by byte to whoever is there', () => {
    const { bus: b } = bus();
    const one = memoryRegion('one', 2);
    const two = memoryRegion('two', 1);
    b.claim({ space: 'pio', base: 0x100, region: one.region });
    b.claim({ space: 'pio', base: 0x102, region: two.region });
    b.writePort(0x101, 4, 0x44332211);
    expect(one.log).toEqual([['w', 1, 1, 0x11]]);
    expect(two.log).toEqual([['w', 0, 1, 0x22]]);
    expect(b.readPort(0x101, 4)).toBe(0xffff2211);
    expect(b.readPort(0xff, 4), 'begins where nobody is').toBe(0x221100ff);
  });

  it('the last port is reachable and nothing lies behind it', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 1);
    b.claim({ space: 'pio', base: 0xffff, region: r.region });
    r.memory[0] = 0x5a;
    expect(b.readPort(0xffff, 2)).toBe(0xff5a);
    expect(() => b.claim({ space: 'pio', base: 0xffff, region: memoryRegion('x', 2).region })).toThrow(VmmError);
  });
});

describe('mmio', () => {
  it('reads and writes 1, 2, 4 and 8 bytes; 8 is split low dword first when the region is not wide', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 16);
    b.claim({ space: 'mmio', base: 0xc0000000, region: r.region });
    writeMmio(b, 0xc0000008, 8, 0x1122334455667788n);
    expect(r.log).toEqual([
      ['w', 8, 4, 0x55667788],
      ['w', 12, 4, 0x11223344],
    ]);
    expect(readMmio(b, 0xc0000008, 8)).toBe(0x1122334455667788n);
    expect(readMmio(b, 0xc000000a, 2)).toBe(0x5566n);
    expect(readMmio(b, 0xc000000f, 1)).toBe(0x11n);
  });

  it('8 bytes are one access where the region is wide', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 16, { wide: true });
    b.claim({ space: 'mmio', base: 2 ** 38, region: r.region });
    writeMmio(b, 2 ** 38 + 8, 8, 0xffffffffffffffffn);
    expect(readMmio(b, 2 ** 38 + 8, 8)).toBe(0xffffffffffffffffn);
    expect(r.log).toEqual([
      ['W', 8, 0xffffffffffffffffn],
      ['R', 8],
    ]);
  });

  it('an odd length, as KVM makes of an access across pages, goes bytewise', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 16);
    b.claim({ space: 'mmio', base: 0x1000, region: r.region });
    writeMmio(b, 0x1001, 3, 0xccbbaan);
    expect(r.log.map((access) => access.slice(0, 3))).toEqual([
      ['w', 1, 1],
      ['w', 2, 1],
      ['w', 3, 1],
    ]);
    expect(readMmio(b, 0x1001, 3)).toBe(0xccbbaan);
  });

  it('what nobody claims reads all-ones, also in the part of an access behind a region', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 4);
    b.claim({ space: 'mmio', base: 0x2000, region: r.region });
    expect(readMmio(b, 0x5000, 4)).toBe(0xffffffffn);
    expect(readMmio(b, 0x2002, 4)).toBe(0xffff0000n);
  });
});

describe('claims', () => {
  it('refuses overlap and reserved ranges, naming who is there, and changes nothing', () => {
    const { bus: b } = bus([{ name: 'guest RAM', start: 0, end: 0x100000 }]);
    const first = memoryRegion('first', 0x1000);
    b.claim({ space: 'mmio', base: 0x200000, region: first.region });
    const clash = () => b.claim({ space: 'mmio', base: 0x200fff, region: memoryRegion('late', 0x1000).region });
    expect(clash).toThrow(/late.*first/);
    expect(() => b.claim({ space: 'mmio', base: 0xff000, region: memoryRegion('x', 0x2000).region })).toThrow(
      /guest RAM/,
    );
    expect(readMmio(b, 0x201000, 1)).toBe(0xffn);
  });

  it('move and release: the old place is nobody’s, a refused move leaves all as it was', () => {
    const { bus: b } = bus();
    const r = memoryRegion('r', 16);
    const other = memoryRegion('other', 16);
    const handle = b.claim({ space: 'mmio', base: 0x1000, region: r.region });
    b.claim({ space: 'mmio', base: 0x3000, region: other.region });
    r.memory[0] = 7;
    expect(readMmio(b, 0x1000, 1)).toBe(7n);
    handle.move(0x2000);
    expect([readMmio(b, 0x1000, 1), readMmio(b, 0x2000, 1)]).toEqual([0xffn, 7n]);
    expect(() => handle.move(0x3008)).toThrow(VmmError);
    expect([handle.base, readMmio(b, 0x2000, 1)]).toEqual([0x2000, 7n]);
    handle.move(0x2008);
    expect(readMmio(b, 0x2008, 1), 'a move onto its own old place').toBe(7n);
    handle.release();
    handle.release();
    expect(readMmio(b, 0x2008, 1)).toBe(0xffn);
  });

  it('fast windows follow their claim, and what was posted before a removal still arrives', () => {
    const fast: FastWindow = { shadow: null, reads: [], posts: [0], file: null };
    const { bus: b, fast: port } = bus();
    const r = memoryRegion('r', 8, { fast });
    const handle = b.claim({ space: 'pio', base: 0x3f8, region: r.region });
    expect([...port.live.values()]).toEqual([{ space: 'pio', base: 0x3f8, size: 8 }]);
    const [id] = port.live.keys();
    b.posted(id!, 0, 1, 0x41);
    port.port.drainPosted = () => b.posted(id!, 0, 1, 0x42);
    handle.move(0x2f8);
    expect([...port.live.values()]).toEqual([{ space: 'pio', base: 0x2f8, size: 8 }]);
    expect(r.log.map((access) => access[3])).toEqual([0x41, 0x42]);
    b.posted(id!, 0, 1, 0x43);
    expect(r.log.length, 'the old number is dead').toBe(2);
    handle.refreshFast(null);
    expect(port.live.size).toBe(0);
    handle.refreshFast(fast);
    handle.release();
    expect(port.live.size).toBe(0);
  });

  it('agrees with a byte map over random claims, moves, releases and accesses', () => {
    const { bus: b } = bus();
    const owner = new Map<number, { memory: Uint8Array; base: number }>();
    const live: { handle: ReturnType<Bus['claim']>; r: ReturnType<typeof memoryRegion> }[] = [];
    let seed = 20261120;
    const random = (n: number) => {
      seed = (seed * 1103515245 + 12345) % 2 ** 31;
      return Math.floor((seed / 2 ** 31) * n);
    };
    const rebuild = () => {
      owner.clear();
      for (const { handle, r } of live) {
        for (let i = 0; i < r.region.size; i++) owner.set(handle.base + i, { memory: r.memory, base: handle.base });
      }
    };
    const expected = (at: number) => {
      const found = owner.get(at);
      return found === undefined ? 0xff : found.memory[at - found.base]!;
    };
    for (let step = 0; step < 4000; step++) {
      const action = random(10);
      if (action === 0 && live.length < 20) {
        const r = memoryRegion(`r${step}`, 1 + random(40));
        for (let i = 0; i < r.region.size; i++) r.memory[i] = random(256);
        const base = random(600);
        const free = Array.from({ length: r.region.size }, (_, i) => !owner.has(base + i)).every(Boolean);
        const claim = () => b.claim({ space: 'mmio', base, region: r.region });
        if (free) live.push({ handle: claim(), r });
        else expect(claim).toThrow(VmmError);
      } else if (action === 1 && live.length > 0) live.splice(random(live.length), 1)[0]!.handle.release();
      else if (action === 2 && live.length > 0) {
        try {
          live[random(live.length)]!.handle.move(random(600));
        } catch (error) {
          expect(error).toBeInstanceOf(VmmError);
        }
      } else {
        const width = [1, 2, 4, 8, 3][random(5)]!;
        const at = random(640);
        let value = 0n;
        for (let i = width - 1; i >= 0; i--) value = value * 256n + BigInt(expected(at + i));
        expect(readMmio(b, at, width)).toBe(value);
      }
      rebuild();
    }
  });
});
