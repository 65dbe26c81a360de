// The bytes of the stream, held against what QEMU writes (qemu-compat A1-A4, A7, A8), and what the reader refuses.
import { describe, expect, it } from 'vitest';
import { ExpectedSections } from '../../../migration/expected-sections.ts';
import { ByteBuilder } from '../../../migration/stream/bytes.ts';
import { parseConfig } from '../../../migration/stream/config-section.ts';
import { checkCrc, writeCrc } from '../../../migration/stream/crc-section.ts';
import { receiveBulk, receiveBulkStart, sendBulk, startBulk } from '../../../migration/stream/device-section.ts';
import { BULK_TAG, PING } from '../../../migration/stream/format.ts';
import { PACKED_MAX, packState, unpackState } from '../../../migration/stream/packed.ts';
import { receiveRam, receiveRamStart, sendRam, startRam } from '../../../migration/stream/ram-section.ts';
import { StreamReader } from '../../../migration/stream/reader.ts';
import { ReturnWriter, readReturn } from '../../../migration/stream/return-path.ts';
import { paddedLength, VmDescription } from '../../../migration/stream/vmdesc.ts';
import { StreamWriter } from '../../../migration/stream/writer.ts';
import { ArrayBitmap, ArrayRam, channelOver, channelPair, crc32c } from '../../fakes/memory-channel.ts';

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replace(/\s+/g, ''), 'hex'));
}
function ascii(text: string): string {
  return Buffer.from(text).toString('hex');
}

describe('the stream is the version-3 stream of QEMU', () => {
  it('header, commands, RAM sections and EOF are these bytes', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    await writer.header('none');
    await writer.openReturnPath();
    await writer.ping(PING.hello);
    const ram = new ArrayRam(3 * 4096);
    ram.bytes.fill(0xab, 4096, 8192);
    const bitmap = new ArrayBitmap(3);
    bitmap.fill();
    const section = await startRam(writer, ram.size);
    await sendRam(writer, 'part', section, { ram, bitmap }, { from: 0, maxPages: 2, bytesPerSecond: 0 });
    await sendRam(writer, 'end', section, { ram, bitmap }, { from: 0, maxPages: 9, bytesPerSecond: 0 });
    await writer.eof();
    const page = 'ab'.repeat(4096);
    expect(Buffer.from(pair.written()).toString('hex')).toBe(
      Buffer.from(hex(`51454256 00000003 07 00000004 ${ascii('none')}`.replace('51454256', ascii('QEVM')))).toString(
        'hex',
      ) +
        Buffer.from(
          hex(`08 0001 0000  08 0002 0004 00000001
            01 00000001 03 ${ascii('ram')} 00000000 00000004
              0000000000003004 03 ${ascii('ram')} 0000000000003000 0000000000000010 7e 00000001
            02 00000001 0000000000000002 03 ${ascii('ram')} 00 0000000000001028 ${page} 0000000000000010 7e 00000001
            03 00000001 0000000000002002 03 ${ascii('ram')} 00 0000000000000010 7e 00000001
            00`),
        ).toString('hex'),
    );
  });

  it('a device section has the layout of QEMU 8 and later for VFIO: SETUP, DATA, END', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    const section = await startBulk(writer, 'dev0');
    await sendBulk(writer, 'part', section, (sink) => sink.put(hex('c0ffee')));
    await sendBulk(writer, 'end', section, async () => undefined);
    expect(Buffer.from(pair.written()).toString('hex')).toBe(
      Buffer.from(
        hex(`01 00000001 09 ${ascii('dev0/vfio')} 00000000 00000001 ffffffffef100003 ffffffffef100001 7e 00000001
          02 00000001 ffffffffef100004 0000000000000003 c0ffee ffffffffef100001 7e 00000001
          03 00000001 ffffffffef100001 7e 00000001`),
      ).toString('hex'),
    );
  });

  it('the description is JSON that lists each FULL section with the size of its state', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    const bytes = await writer.state('rtc', 3, { index: 7 });
    const before = pair.written().length;
    await writer.description();
    const tail = Buffer.from(pair.written().subarray(before));
    expect(tail[0]).toBe(6);
    expect(tail.readUInt32BE(1)).toBe(tail.length - 5);
    expect(JSON.parse(tail.subarray(5).toString())).toEqual({
      page_size: 4096,
      devices: [
        {
          name: 'rtc',
          instance_id: 0,
          vmsd_name: 'rtc',
          version: 3,
          fields: [
            { name: 'length', type: 'uint32', size: 4 },
            { name: 'state', type: 'buffer', size: bytes },
          ],
        },
      ],
    });
  });

  it('pads the description until no byte of its length is an opening brace', () => {
    for (let length = 0; length < 0x20000; length += 1) {
      const padded = paddedLength(length);
      const bytes = [24, 16, 8, 0].map((shift) => (padded >>> shift) & 0xff);
      expect(padded >= length && !bytes.includes(0x7b)).toBe(true);
      if (length % 0x100 !== 0x7b && Math.floor(length / 256) % 256 !== 0x7b) expect(padded).toBe(length);
    }
    expect(new VmDescription().encode().includes(0)).toBe(false);
  });

  it('answers on the return path are these bytes, and are read back', async () => {
    const pair = channelPair();
    const returns = new ReturnWriter(pair.source);
    await returns.pong(1);
    await returns.shut(0);
    expect(Buffer.from(pair.written()).toString('hex')).toBe('00020004000000010001000400000000');
    await returns.refused('no such\ndevice');
    await returns.report({ loadMs: 1.5, resumeMs: 2.25, late: ['gpu0', 'gpu\u001b1'] });
    await returns.alive();
    const read = [];
    for (let n = 0; n < 5; n += 1) read.push(await readReturn(pair.destination));
    expect(read).toEqual([
      { kind: 'pong', value: 1 },
      { kind: 'shut', value: 0 },
      { kind: 'refused', reason: 'no such device' },
      { kind: 'report', loadMs: 1.5, resumeMs: 2.25, late: ['gpu0', 'gpu 1'] },
      { kind: 'alive' },
    ]);
  });

  it('no PING value is one flipped byte away from the hand-over value', () => {
    const others: number[] = [PING.hello, PING.built, PING.ramArrived, PING.deviceDataArrived];
    for (let round = 0; round < 5000; round += 1) others.push(PING.rounds + round);
    for (const other of others) {
      const differing = [0, 8, 16, 24].filter((shift) => ((other ^ PING.handOver) >>> shift) & 0xff).length;
      expect(differing).toBeGreaterThan(1);
    }
  });
});

describe('what was written is read back', () => {
  it('RAM', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    const reader = new StreamReader(pair.destination);
    const [from, to] = [new ArrayRam(5 * 4096), new ArrayRam(5 * 4096)];
    from.bytes.fill(9, 3 * 4096);
    const bitmap = new ArrayBitmap(5);
    bitmap.fill();
    const section = await startRam(writer, from.size);
    await sendRam(writer, 'end', section, { ram: from, bitmap }, { from: 0, maxPages: 5, bytesPerSecond: 0 });
    const start = await reader.next();
    if (start.kind !== 'start') throw new Error(start.kind);
    await receiveRamStart(reader, start.section, to);
    const end = await reader.next();
    if (end.kind !== 'end') throw new Error(end.kind);
    expect(await receiveRam(reader, end.section, to)).toMatchObject({ pages: 2, zeroPages: 3 });
    expect(Buffer.compare(from.bytes, to.bytes)).toBe(0);
  });

  it('device data of more than one record', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    const reader = new StreamReader(pair.destination);
    const data = new Uint8Array((2 << 20) + 17).map((_, at) => at & 0xff);
    const section = await startBulk(writer, 'd');
    expect(await sendBulk(writer, 'end', section, (sink) => sink.put(data))).toBe(data.length);
    const start = await reader.next();
    if (start.kind !== 'start') throw new Error(start.kind);
    await receiveBulkStart(reader, start.section);
    const end = await reader.next();
    if (end.kind !== 'end') throw new Error(end.kind);
    const got: Uint8Array[] = [];
    await receiveBulk(reader, end.section, {
      loadChunk: async (source, length) => {
        got.push(await source.take(1), await source.take(length - 1));
      },
    });
    expect(Buffer.compare(Buffer.concat(got), data)).toBe(0);
  });

  it('a record is as long as a chunk of its device, up to 1 GiB, and one that nobody wants is read all the same', async () => {
    const record = async (length: number, target: Parameters<typeof receiveBulk>[2], bytes: number) => {
      const pair = channelPair();
      const writer = new StreamWriter(pair.source);
      const section = await startBulk(writer, 'd');
      await sendBulk(writer, 'end', section, async () => {
        await pair.source.write(new ByteBuilder().u64(BULK_TAG.data).u64(BigInt(length)).take());
        await pair.source.write(new Uint8Array(bytes));
      });
      const reader = new StreamReader(pair.destination);
      const start = await reader.next();
      if (start.kind !== 'start') throw new Error(start.kind);
      await receiveBulkStart(reader, start.section);
      await reader.next();
      return receiveBulk(reader, start.section, target);
    };
    const sizes: number[] = [];
    const device = {
      loadChunk: async (source: { take(n: number): Promise<unknown> }, length: number) => {
        sizes.push(length);
        await source.take(length);
      },
    };
    const long = 3 * 2 ** 20 + 5;
    expect(await record(long, device, long)).toBe(long);
    expect(await record(long, null, long)).toBe(long);
    expect(sizes).toEqual([long]);
    await expect(record(2 ** 30 + 1, device, 0)).rejects.toThrow(
      /a record of 1073741825 bytes .*1073741824 are allowed/,
    );
  });

  it('a device that leaves part of a record unread is refused', async () => {
    const pair = channelPair();
    const section = await startBulk(new StreamWriter(pair.source), 'd');
    await sendBulk(new StreamWriter(pair.source), 'end', section, (sink) => sink.put(new Uint8Array(10)));
    const reader = new StreamReader(pair.destination);
    const start = await reader.next();
    if (start.kind !== 'start') throw new Error(start.kind);
    await receiveBulkStart(reader, start.section);
    await reader.next();
    const lazy = receiveBulk(reader, start.section, { loadChunk: async (source) => void (await source.take(4)) });
    await expect(lazy).rejects.toThrow('left 6 bytes');
  });

  it('states of plain data, bigints and bytes included', () => {
    const state = {
      a: [1, -2, 0.5, null, true, 'x'],
      wide: 0xffff_ffff_ffff_ffffn,
      bytes: new Uint8Array([1, 2]),
      o: { p: 2 ** 40 },
    };
    const back = unpackState('s', packState('s', state)) as typeof state;
    expect({ ...back, bytes: [...back.bytes] }).toEqual({ ...state, bytes: [1, 2] });
  });

  it('refuses to pack or unpack what is no plain data', () => {
    for (const value of [new Map(), new Date(), () => 1, undefined, Symbol('s'), { a: undefined }])
      expect(() => packState('s', value)).toThrow(/plain/);
    expect(() => packState('s', new Uint8Array(PACKED_MAX + 1))).toThrow(/the stream allows/);
    // msgpack's timestamp extension would come out as a Date.
    expect(() => unpackState('s', hex('d6ff00000000'))).toThrow(/plain|decoded/);
    expect(() => unpackState('s', hex('92 01'))).toThrow(/decoded/);
    expect(() => unpackState('s', new Uint8Array(64).fill(0x91))).toThrow(/decoded|nested/);
  });
});

describe('the check sum section', () => {
  it('counts every byte before it that is not page contents, and its own header', async () => {
    const pair = channelPair();
    const writer = new StreamWriter(pair.source);
    await writer.header('ferry');
    await writeCrc(writer);
    const written = pair.written();
    const counted = written.subarray(0, written.length - 9);
    expect(Buffer.from(written).readUInt32BE(written.length - 9)).toBe(crc32c(0, counted));
    expect(crc32c(0, new TextEncoder().encode('123456789'))).toBe(0xe3069283);
  });

  it('is refused after a flipped byte', async () => {
    for (const flipAt of [9, 14]) {
      const pair = channelPair({ forward: { flipAt } });
      await new StreamWriter(pair.source).header('ferry-machine');
      await writeCrc(new StreamWriter(pair.source));
      const reader = new StreamReader(pair.destination);
      if (flipAt === 9) {
        await expect(reader.header()).rejects.toThrow();
        continue;
      }
      expect(await reader.header()).not.toBe('ferry-machine');
      const record = await reader.next();
      if (record.kind !== 'full') throw new Error(record.kind);
      await expect(checkCrc(reader, record.section)).rejects.toThrow(/altered/);
    }
  });
});

describe('the reader refuses by name', () => {
  const read = async (bytes: string): Promise<unknown> => {
    const reader = new StreamReader(channelOver(hex(bytes)));
    return reader.next();
  };
  it.each([
    ['an unknown record', '09', /unknown record type 0x9/],
    ['an unknown command', '08 0003 0000', /unknown command 3/],
    ['a PING of another length', '08 0002 0003', /unknown command 2/],
    ['a part of nothing', '02 00000007', /never opened/],
    ['another instance', `04 00000001 01 ${ascii('a')} 00000001 00000001`, /instance 1/],
    ['the end of the bytes', '04 000000', /ended/],
  ])('%s', async (_name, bytes, message) => {
    await expect(read(bytes)).rejects.toThrow(message);
  });

  it.each([
    ['another magic', `${ascii('QEVN')} 00000003`, /no migration stream/],
    ['another version', `${ascii('QEVM')} 00000002`, /stream version 2/],
    ['no configuration', `${ascii('QEVM')} 00000003 01`, /configuration record missing/],
    ['a huge machine type', `${ascii('QEVM')} 00000003 07 ffffffff`, /machine type of/],
  ])('%s at the beginning', async (_name, bytes, message) => {
    await expect(new StreamReader(channelOver(hex(bytes))).header()).rejects.toThrow(message);
  });

  it('a section number used twice, a wrong footer, a state of absurd length', async () => {
    const head = `04 00000001 01 ${ascii('a')} 00000000 00000001`;
    const twice = new StreamReader(channelOver(hex(head + head)));
    await twice.next();
    await expect(twice.next()).rejects.toThrow(/used twice/);
    const section = { id: 1, name: 'a', version: 1 };
    await expect(new StreamReader(channelOver(hex('7e 00000002'))).footer(section)).rejects.toThrow(/does not end/);
    await expect(new StreamReader(channelOver(hex('ffffffff'))).state(section)).rejects.toThrow(
      /claims 4294967295 bytes/,
    );
  });

  it('RAM of another size or block, before the first page', async () => {
    const section = { id: 1, name: 'ram', version: 4 };
    const start = (total: string, name: string, length: string): Promise<void> =>
      receiveRamStart(new StreamReader(channelOver(hex(total + name + length))), section, new ArrayRam(0x3000));
    const ram = `03${ascii('ram')}`;
    await expect(start('0000000000003004', `03${ascii('rom')}`, '0000000000003000')).rejects.toThrow(
      /unknown RAM block/,
    );
    await expect(start('0000000000004004', ram, '0000000000004000')).rejects.toThrow(/16384 bytes/);
    await expect(start('0000000000003008', ram, '0000000000003000')).rejects.toThrow(/sizes/);
    const old = { ...section, version: 3 };
    await expect(receiveRamStart(new StreamReader(channelOver(hex('00'))), old, new ArrayRam(0))).rejects.toThrow(
      /version 3/,
    );
  });

  it('a configuration with a missing or impossible field, naming it', () => {
    const good = {
      name: 'g',
      memory: 4096,
      cpus: 1,
      noReboot: false,
      debugExit: false,
      boot: { kernel: '/boot/k', initrd: null, append: 'x' },
      ram: [{ gpa: 0, size: 4096, offset: 0 }],
      cpu: {
        cpuid: [{ function: 1, index: 0, flags: 0, eax: 1, ebx: 2, ecx: 3, edx: 4 }],
        xcr0: 7n,
        xsaveSize: 1,
        msrs: [16],
        tscKhz: 1,
      },
      devices: [{ id: 'd', type: 't', version: null, live: true }],
      deviceConfigs: [{ id: 'd', type: 't', slot: 3 }],
      dropDeviceState: false,
    };
    expect(parseConfig(good)).toEqual(good);
    for (const name of Object.keys(good))
      expect(() => parseConfig({ ...good, [name]: {} })).toThrow(new RegExp(name.slice(0, 6)));
    expect(() => parseConfig({ ...good, memory: 4097 })).toThrow(/memory/);
    expect(() => parseConfig({ ...good, ram: [{ gpa: -4096, size: 0, offset: 0 }] })).toThrow(/ram.gpa/);
    expect(() => parseConfig({ ...good, deviceConfigs: [{ id: 'd', type: 't', slot: 32 }] })).toThrow(/slot/);
  });
});

describe('sections: unknown, missing, doubled and early ones are refused', () => {
  const make = (): ExpectedSections =>
    new ExpectedSections([
      { id: 'serial', type: 'serial', version: 1, live: false },
      { id: 'net', type: 'vfio-pci', version: 1, live: true },
    ]);
  const whole = (expected: ExpectedSections, leaveOut: string): void => {
    for (const name of ['ram', 'net/vfio']) if (name !== leaveOut) expected.start(name);
    for (const name of ['ram', 'net/vfio']) if (name !== leaveOut) expected.part(name, true);
    for (const name of ['serial', 'net', 'ferry/core', 'ferry/crc']) if (name !== leaveOut) expected.full(name);
    expected.checkComplete();
  };

  it('the whole set passes', () => expect(() => whole(make(), '')).not.toThrow());
  it.each(['ram', 'net/vfio', 'serial', 'net', 'ferry/core', 'ferry/crc'])('%s missing', (name) => {
    expect(() => whole(make(), name)).toThrow(new RegExp(name));
  });
  it('unknown, doubled, early, late', () => {
    expect(() => make().full('apic')).toThrow(/unknown section "apic"/);
    expect(() => make().full('serial')).toThrow(/comes before "ram"/);
    expect(() => make().part('ram', false)).toThrow(/not open/);
    expect(() => make().full('ram')).toThrow(/in parts/);
    expect(() => make().start('serial')).toThrow(/cannot come in parts/);
    const twice = make();
    twice.start('ram');
    expect(() => twice.start('ram')).toThrow(/twice/);
    twice.part('ram', true);
    expect(() => twice.part('ram', true)).toThrow(/not open/);
    const late = make();
    whole(late, '');
    expect(() => late.full('serial')).toThrow(/twice|after the check sum/);
  });
  it('two devices that would share a section name', () => {
    const device = { id: 'a', type: 't', version: 1, live: false };
    expect(() => new ExpectedSections([device, device])).toThrow(/two sections/);
    expect(() => new ExpectedSections([{ ...device, id: 'ferry/config' }])).toThrow(/two sections/);
  });
});

describe('a name longer than 127 bytes', () => {
  it('is not written, for analyze-migration reads a signed byte', () => {
    expect(() => new ByteBuilder().cstr('x'.repeat(128))).toThrow(RangeError);
  });
});
