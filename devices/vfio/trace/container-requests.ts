// The ioctls of VFIO containers (type1) and groups as data. Read by decode.ts and pointers.ts. linux/vfio.h
import * as vfio from '../../../native/abi/vfio.ts';
import { type Capabilities, capabilities } from './device-requests.ts';
import { flags, listOf, readStruct, struct, u32, x64 } from './fields.ts';
import { call, NONE, type Pointer, type Request, withStruct } from './request.ts';

const EXTENSIONS = {
  VFIO_TYPE1_IOMMU: vfio.VFIO_TYPE1_IOMMU,
  VFIO_TYPE1v2_IOMMU: vfio.VFIO_TYPE1v2_IOMMU,
  VFIO_DMA_CC_IOMMU: vfio.VFIO_DMA_CC_IOMMU,
  VFIO_TYPE1_NESTING_IOMMU: vfio.VFIO_TYPE1_NESTING_IOMMU,
  VFIO_NOIOMMU_IOMMU: vfio.VFIO_NOIOMMU_IOMMU,
  VFIO_UNMAP_ALL: vfio.VFIO_UNMAP_ALL,
  VFIO_UPDATE_VADDR: vfio.VFIO_UPDATE_VADDR,
};

const IOVA = struct(vfio.vfio_iova_range, { start: x64, end: x64 });
const IOVA_RANGES = struct(vfio.vfio_iommu_type1_info_cap_iova_range, { nr_iovas: u32 }, (view, base) => {
  const layout = vfio.vfio_iommu_type1_info_cap_iova_range;
  if (base + layout.iova_ranges > view.byteLength) return {};
  return { ranges: listOf(IOVA, view, base + layout.iova_ranges, view.getUint32(base + layout.nr_iovas, true)) };
});
const INFO_CAPS: Capabilities = {
  [vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE]: { name: 'IOVA_RANGE', struct: IOVA_RANGES },
  [vfio.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION]: {
    name: 'MIGRATION',
    struct: struct(vfio.vfio_iommu_type1_info_cap_migration, {
      flags: flags({}),
      pgsize_bitmap: x64,
      max_dirty_bitmap_size: x64,
    }),
  },
  [vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL]: {
    name: 'DMA_AVAIL',
    struct: struct(vfio.vfio_iommu_type1_info_dma_avail, { avail: u32 }),
  },
};
const TYPE1_INFO = struct(
  vfio.vfio_iommu_type1_info,
  {
    argsz: u32,
    flags: flags({ PGSIZES: vfio.VFIO_IOMMU_INFO_PGSIZES, CAPS: vfio.VFIO_IOMMU_INFO_CAPS }),
    iova_pgsizes: x64,
    cap_offset: u32,
  },
  capabilities(INFO_CAPS, vfio.vfio_iommu_type1_info.cap_offset),
);

const MAP = struct(vfio.vfio_iommu_type1_dma_map, {
  argsz: u32,
  flags: flags({
    READ: vfio.VFIO_DMA_MAP_FLAG_READ,
    WRITE: vfio.VFIO_DMA_MAP_FLAG_WRITE,
    VADDR: vfio.VFIO_DMA_MAP_FLAG_VADDR,
  }),
  vaddr: x64,
  iova: x64,
  size_at: x64,
});

const BITMAP = struct(vfio.vfio_bitmap, { pgsize: x64, size_at: x64 });
const UNMAP = struct(
  vfio.vfio_iommu_type1_dma_unmap,
  {
    argsz: u32,
    flags: flags({
      GET_DIRTY_BITMAP: vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
      ALL: vfio.VFIO_DMA_UNMAP_FLAG_ALL,
      VADDR: vfio.VFIO_DMA_UNMAP_FLAG_VADDR,
    }),
    iova: x64,
    size_at: x64,
  },
  (view, base) => {
    const layout = vfio.vfio_iommu_type1_dma_unmap;
    if (base + layout.data + vfio.vfio_bitmap.size > view.byteLength) return {};
    const wanted = view.getUint32(base + layout.flags, true) & vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    return wanted === 0 ? {} : { dirty: readStruct(BITMAP, view, base + layout.data) };
  },
);

const GET_BITMAP_AT = vfio.vfio_iommu_type1_dirty_bitmap.data;
const GET = struct(vfio.vfio_iommu_type1_dirty_bitmap_get, { iova: x64, size_at: x64 }, (view, base) => {
  const at = base + vfio.vfio_iommu_type1_dirty_bitmap_get.bitmap;
  return at + vfio.vfio_bitmap.size > view.byteLength ? {} : { dirty: readStruct(BITMAP, view, at) };
});
const DIRTY = struct(
  vfio.vfio_iommu_type1_dirty_bitmap,
  {
    argsz: u32,
    flags: flags({
      START: vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
      STOP: vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
      GET_BITMAP: vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
    }),
  },
  (view, base) => (base + GET_BITMAP_AT < view.byteLength ? readStruct(GET, view, base + GET_BITMAP_AT) : {}),
);

/** A struct vfio_bitmap that starts at `at` of the argument. */
function bitmapAt(at: number, needed: number): Pointer {
  const size = { kind: 'size64', size: at + vfio.vfio_bitmap.size_at } as const;
  return { at: at + vfio.vfio_bitmap.data, name: 'bitmap', length: size, when: 'after', flags: needed };
}

const DIRTY_GIVEN = ['argsz', 'flags', 'iova', 'size', 'dirty'];

export const CONTAINER_REQUESTS: readonly Request[] = [
  call('VFIO_GET_API_VERSION', vfio.VFIO_GET_API_VERSION, NONE),
  call('VFIO_CHECK_EXTENSION', vfio.VFIO_CHECK_EXTENSION, { kind: 'number', name: 'extension', words: EXTENSIONS }),
  call('VFIO_SET_IOMMU', vfio.VFIO_SET_IOMMU, { kind: 'number', name: 'type', words: EXTENSIONS }),
  call('VFIO_IOMMU_GET_INFO', vfio.VFIO_IOMMU_GET_INFO, withStruct(TYPE1_INFO, ['argsz'])),
  call(
    'VFIO_IOMMU_MAP_DMA',
    vfio.VFIO_IOMMU_MAP_DMA,
    withStruct(MAP, ['argsz', 'flags', 'vaddr', 'iova', 'size'], ['iova', 'size', 'flags']),
  ),
  call(
    'VFIO_IOMMU_UNMAP_DMA',
    vfio.VFIO_IOMMU_UNMAP_DMA,
    withStruct(UNMAP, ['argsz', 'flags', 'iova', 'size', 'dirty'], ['iova', 'size', 'flags']),
    { pointers: [bitmapAt(vfio.vfio_iommu_type1_dma_unmap.data, vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP)] },
  ),
  call('VFIO_IOMMU_ENABLE', vfio.VFIO_IOMMU_ENABLE, NONE),
  call('VFIO_IOMMU_DISABLE', vfio.VFIO_IOMMU_DISABLE, NONE),
  call(
    'VFIO_IOMMU_DIRTY_PAGES',
    vfio.VFIO_IOMMU_DIRTY_PAGES,
    withStruct(DIRTY, DIRTY_GIVEN, ['flags', 'iova', 'size']),
    {
      pointers: [
        bitmapAt(
          GET_BITMAP_AT + vfio.vfio_iommu_type1_dirty_bitmap_get.bitmap,
          vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        ),
      ],
    },
  ),
];

const GROUP_STATUS = struct(vfio.vfio_group_status, {
  argsz: u32,
  flags: flags({ VIABLE: vfio.VFIO_GROUP_FLAGS_VIABLE, CONTAINER_SET: vfio.VFIO_GROUP_FLAGS_CONTAINER_SET }),
});

export const GROUP_REQUESTS: readonly Request[] = [
  call('VFIO_GROUP_GET_STATUS', vfio.VFIO_GROUP_GET_STATUS, withStruct(GROUP_STATUS, ['argsz'])),
  call('VFIO_GROUP_SET_CONTAINER', vfio.VFIO_GROUP_SET_CONTAINER, { kind: 'int', name: 'container' }),
  call('VFIO_GROUP_UNSET_CONTAINER', vfio.VFIO_GROUP_UNSET_CONTAINER, NONE),
  call(
    'VFIO_GROUP_GET_DEVICE_FD',
    vfio.VFIO_GROUP_GET_DEVICE_FD,
    { kind: 'text', name: 'device' },
    { makes: 'result' },
  ),
];
