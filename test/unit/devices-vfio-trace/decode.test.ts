// Rule: what a C program puts into an ioctl argument by name, the trace says by that name. The compiler lays the structs out, not native/abi.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { decodeIoctl, type IoctlCall, type PointedMemory } from '../../../devices/vfio/trace/decode.ts';
import type { FdKind } from '../../../devices/vfio/trace/request.ts';

function compiled(): Map<string, { request: number; bytes: Uint8Array }> {
  const folder = mkdtempSync(join(tmpdir(), 'ferry-decode-'));
  try {
    const program = join(folder, 'arguments');
    execFileSync('gcc', ['-Wall', '-o', program, join(import.meta.dirname, 'arguments.c')]);
    const lines = execFileSync(program, { encoding: 'utf8' }).trim().split('\n');
    return new Map(
      lines.map((line) => {
        const [label = '', request, hex = ''] = line.split(' ');
        return [label, { request: Number(request), bytes: Buffer.from(hex, 'hex') }];
      }),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
}
const C = compiled();
const bytesOf = (label: string) => C.get(label)!.bytes;

/** The struct of C as the answer; as the question too, unless the caller only gave its size (`blank`). */
function decode(kind: FdKind, label: string, options: Partial<IoctlCall> & { blank?: readonly number[] } = {}) {
  const { request, bytes } = C.get(label)!;
  const before =
    options.blank === undefined ? bytes : bytes.map((byte, i) => (options.blank!.includes(i >> 2) ? byte : 0));
  return decodeIoctl({
    kind,
    request,
    before,
    after: bytes,
    failed: false,
    memory: [],
    labels: new Map(),
    ...options,
  });
}
const ASK = [0];
const ASK_INDEX = [0, 2];

describe('a device', () => {
  it('has its info, regions with their capabilities, and interrupts', () => {
    expect(decode('device', 'device-info', { blank: ASK })).toEqual({
      what: 'VFIO_DEVICE_GET_INFO',
      given: { argsz: bytesOf('device-info').length },
      answer: { flags: 'RESET|PCI', num_regions: 9, num_irqs: 5, cap_offset: 0 },
    });
    expect(decode('device', 'region-info', { blank: ASK_INDEX })).toEqual({
      what: 'VFIO_DEVICE_GET_REGION_INFO(index=2)',
      given: { argsz: 88, index: 2 },
      answer: {
        flags: 'READ|WRITE|MMAP|CAPS',
        cap_offset: 32,
        size: '0x4000',
        offset: '0x20000000000',
        capabilities: [
          {
            cap: 'SPARSE_MMAP',
            version: 1,
            nr_areas: 2,
            areas: [
              { offset: '0x0', size: '0x1000' },
              { offset: '0x2000', size: '0x2000' },
            ],
          },
          { cap: 'MSIX_MAPPABLE', version: 1 },
        ],
      },
    });
    expect(decode('device', 'irq-info', { blank: ASK_INDEX })).toMatchObject({
      what: 'VFIO_DEVICE_GET_IRQ_INFO(index=2)',
      answer: { flags: 'EVENTFD|NORESIZE', count: 64 },
    });
    expect(decode('device', 'set-irqs')).toEqual({
      what: 'VFIO_DEVICE_SET_IRQS(index=2 flags=DATA_EVENTFD|ACTION_TRIGGER start=1 count=2)',
      given: { argsz: 28, flags: 'DATA_EVENTFD|ACTION_TRIGGER', index: 2, start: 1, count: 2, eventfds: [31, -1] },
      answer: {},
    });
    expect(decode('device', 'set-irqs-none').given).toEqual({
      argsz: 20,
      flags: 'DATA_NONE|ACTION_UNMASK',
      index: 0,
      start: 0,
      count: 1,
    });
  });

  it('has features, each with its direction', () => {
    const words = (label: string, options: Parameters<typeof decode>[2] = {}) => {
      const { what, given, answer } = decode('device', label, options);
      return [what, given, answer];
    };
    const header = [0, 1];
    expect(words('migration', { blank: header })).toEqual([
      'VFIO_DEVICE_FEATURE(GET MIGRATION)',
      {},
      { flags: 'STOP_COPY|P2P|PRE_COPY' },
    ]);
    expect(words('set-state')).toEqual([
      'VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE device_state=STOP_COPY)',
      { device_state: 'STOP_COPY' },
      { data_fd: 42 },
    ]);
    expect(words('get-state', { blank: header })).toEqual([
      'VFIO_DEVICE_FEATURE(GET MIG_DEVICE_STATE)',
      {},
      { device_state: 'STOP_COPY', data_fd: 42 },
    ]);
    const ranges: PointedMemory = { at: 24, when: 'before', bytes: bytesOf('log-ranges') };
    expect(words('log-start', { memory: [ranges] })).toEqual([
      'VFIO_DEVICE_FEATURE(SET DMA_LOGGING_START)',
      {
        page_size: '0x1000',
        num_ranges: 2,
        ranges: [
          { iova: '0x0', length: '0xa0000' },
          { iova: '0x100000000', length: '0x100000' },
        ],
      },
      {},
    ]);
    const bitmap: PointedMemory = { at: 32, when: 'after', bytes: Uint8Array.of(0x81, 0, 0, 0, 0, 0, 0, 1) };
    expect(words('log-report', { memory: [bitmap] })).toEqual([
      'VFIO_DEVICE_FEATURE(GET DMA_LOGGING_REPORT iova=0x1000 length=0x100000)',
      { iova: '0x1000', length: '0x100000', page_size: '0x1000' },
      { bitmap: { bytes: 8, set: 3 } },
    ]);
    expect(words('log-stop')[0]).toBe('VFIO_DEVICE_FEATURE(SET DMA_LOGGING_STOP)');
    expect(words('log-probe')).toEqual(['VFIO_DEVICE_FEATURE(PROBE SET DMA_LOGGING_START)', {}, {}]);
    expect(words('data-size', { blank: header })).toEqual([
      'VFIO_DEVICE_FEATURE(GET MIG_DATA_SIZE)',
      {},
      { stop_copy_length: '0x1388' },
    ]);
    expect(words('low-power')[0]).toBe('VFIO_DEVICE_FEATURE(SET LOW_POWER_ENTRY)');
    expect(words('wakeup')[1]).toEqual({ wakeup_eventfd: 7 });
    expect(words('low-power-exit')[0]).toBe('VFIO_DEVICE_FEATURE(SET LOW_POWER_EXIT)');
    expect(words('bus-master')[0]).toBe('VFIO_DEVICE_FEATURE(SET BUS_MASTER op=SET_MASTER)');
    expect(words('vf-token')[0]).toBe('VFIO_DEVICE_FEATURE(SET PCI_VF_TOKEN)');
    expect(words('unknown')[0]).toBe('VFIO_DEVICE_FEATURE(GET 77)');
  });

  it('is bound to an iommufd', () => {
    expect(decode('device', 'bind', { blank: [0, 1, 2] })).toEqual({
      what: 'VFIO_DEVICE_BIND_IOMMUFD',
      given: { argsz: 16, flags: '0x0', iommufd: 9 },
      answer: { out_devid: 3 },
    });
    expect(decode('device', 'attach').given).toEqual({ argsz: 12, flags: '0x0', pt_id: 4 });
  });
});

describe('a container and a group', () => {
  it('say what the IOMMU can, with every capability', () => {
    const { what, answer } = decode('container', 'type1-info', { blank: ASK });
    expect(what).toBe('VFIO_IOMMU_GET_INFO');
    expect(answer).toEqual({
      flags: 'PGSIZES|CAPS',
      iova_pgsizes: '0x40201000',
      cap_offset: 24,
      capabilities: [
        {
          cap: 'IOVA_RANGE',
          version: 1,
          nr_iovas: 2,
          ranges: [
            { start: '0x0', end: '0xfedfffff' },
            { start: '0xfef00000', end: '0xffffffffffffffff' },
          ],
        },
        { cap: 'MIGRATION', version: 1, flags: '0', pgsize_bitmap: '0x1000', max_dirty_bitmap_size: '0x10000000' },
        { cap: 'DMA_AVAIL', version: 1, avail: 65535 },
      ],
    });
  });

  it('map, unmap and report dirty pages', () => {
    expect(decode('container', 'map').given).toEqual({
      argsz: 32,
      flags: 'READ|WRITE',
      vaddr: '0x7f0000000000',
      iova: '0x100000000',
      size: '0x40000000',
    });
    const bitmap: PointedMemory = { at: 40, when: 'after', bytes: Uint8Array.of(7, 0, 0, 0, 0, 0, 0, 0) };
    expect(decode('container', 'unmap', { memory: [bitmap] })).toMatchObject({
      what: 'VFIO_IOMMU_UNMAP_DMA(iova=0x1000 size=0x40000 flags=GET_DIRTY_BITMAP)',
      given: { dirty: { pgsize: '0x1000', size: '0x8' } },
      answer: { bitmap: { bytes: 8, set: 3 } },
    });
    expect(decode('container', 'dirty-get').what).toBe(
      'VFIO_IOMMU_DIRTY_PAGES(flags=GET_BITMAP iova=0x0 size=0x100000)',
    );
    expect(decode('container', 'dirty-start').what).toBe('VFIO_IOMMU_DIRTY_PAGES(flags=START)');
  });

  it('take numbers, fds and names', () => {
    const number = (request: number, before: number) =>
      decode('container', 'map', { request, before, after: null }).what;
    expect(number(0x3b66, 3)).toBe('VFIO_SET_IOMMU(VFIO_TYPE1v2_IOMMU)');
    expect(number(0x3b65, 99)).toBe('VFIO_CHECK_EXTENSION(99)');
    expect(number(0x3b64, 0)).toBe('VFIO_GET_API_VERSION');
    expect(decode('group', 'group-status', { blank: ASK }).answer).toEqual({ flags: 'VIABLE' });
    expect(decode('group', 'device-fd').what).toBe('VFIO_GROUP_GET_DEVICE_FD(0000:65:00.0)');
    expect(decode('group', 'device-fd', { request: 0x3b68, before: Uint8Array.of(11, 0, 0, 0) })).toMatchObject({
      what: 'VFIO_GROUP_SET_CONTAINER',
      given: { container: 11 },
    });
  });

  it('mean something else by a number than a device does', () => {
    // 0x3b75 is VFIO_DEVICE_FEATURE and VFIO_IOMMU_DIRTY_PAGES.
    expect(decode('device', 'dirty-start').what).toMatch(/^VFIO_DEVICE_FEATURE/);
    expect(decode('container', 'dirty-start').what).toMatch(/^VFIO_IOMMU_DIRTY_PAGES/);
  });
});

describe('an iommufd and a data fd', () => {
  it('are decoded with the lists that they point to', () => {
    expect(decode('iommufd', 'ioas-map').given).toMatchObject({
      flags: 'FIXED_IOVA|WRITEABLE|READABLE',
      ioas_id: 2,
      iova: '0x100000000',
    });
    expect(decode('iommufd', 'ioas-unmap').what).toBe('IOMMU_IOAS_UNMAP(ioas_id=2 iova=0x0)');
    const list: PointedMemory = { at: 16, when: 'after', bytes: bytesOf('ioas-list') };
    expect(decode('iommufd', 'ioas-ranges', { blank: [0, 1], memory: [list] }).answer).toEqual({
      num_iovas: 2,
      out_iova_alignment: '0x1000',
      ranges: [
        { start: '0x0', last: '0xfedfffff' },
        { start: '0xfef00000', last: '0x7fffffffff' },
      ],
    });
    expect(decode('iommufd', 'hwpt-alloc', { blank: [0, 1, 2, 3] })).toMatchObject({
      what: 'IOMMU_HWPT_ALLOC(flags=DIRTY_TRACKING pt_id=2)',
      answer: { out_hwpt_id: 5 },
    });
    expect(decode('iommufd', 'hwpt-bitmap').given).toMatchObject({ flags: 'NO_CLEAR', hwpt_id: 5, length: '0x100000' });
    expect(decode('iommufd', 'hwpt-tracking').what).toBe('IOMMU_HWPT_SET_DIRTY_TRACKING(hwpt_id=5 flags=ENABLE)');
    expect(decode('iommufd', 'option').what).toBe('IOMMU_OPTION(op=GET option_id=HUGE_PAGES)');
    const data: PointedMemory = { at: 16, when: 'after', bytes: bytesOf('hw-data') };
    expect(decode('iommufd', 'hw-info', { blank: [0, 1, 2, 3], memory: [data] }).answer).toEqual({
      out_data_type: 'INTEL_VTD',
      out_max_pasid_log2: 20,
      out_capabilities: 'DIRTY_TRACKING',
      data: '11000000000000002200000000000000',
    });
    expect(decode('data', 'precopy', { blank: [0, 1] }).answer).toEqual({
      initial_bytes: '0x1000',
      dirty_bytes: '0xc',
    });
  });
});

describe('what cannot be decoded', () => {
  it('keeps its number, and a struct that is too short shows what it has', () => {
    expect(decode('device', 'device-info', { request: 0x3bff }).what).toBe('ioctl 0x3bff');
    const short = bytesOf('device-info').slice(0, 8);
    expect(decode('device', 'device-info', { before: short, after: short }).answer).toEqual({ flags: 'RESET|PCI' });
    expect(decode('device', 'region-info', { before: null, after: null }).what).toBe('VFIO_DEVICE_GET_REGION_INFO');
    expect(decode('device', 'migration', { before: Uint8Array.of(1), after: null }).what).toBe('VFIO_DEVICE_FEATURE');
  });

  it('has no answer when it failed and wrote nothing', () => {
    expect(decode('device', 'device-info', { failed: true }).answer).toEqual({});
  });
});
