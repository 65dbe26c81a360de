// The ioctls of /dev/iommu as data. Read by decode.ts and pointers.ts. linux/iommufd.h; every struct begins with its own size.
import * as iommufd from '../../../native/abi/iommufd.ts';
import { flags, oneOf, s32, struct, u8, u16, u32, x64 } from './fields.ts';
import { call, type Pointer, type Request, withStruct } from './request.ts';

const RANGE = struct(iommufd.iommu_iova_range, { start: x64, last: x64 });

function rangesAt(
  layout: { readonly allowed_iovas: number; readonly num_iovas: number },
  when: Pointer['when'],
): Pointer {
  const length = { kind: 'count', count: layout.num_iovas, element: RANGE } as const;
  return { at: layout.allowed_iovas, name: 'ranges', length, when, flags: 0 };
}

const MAP_FLAGS = flags({
  FIXED_IOVA: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA,
  WRITEABLE: iommufd.IOMMU_IOAS_MAP_WRITEABLE,
  READABLE: iommufd.IOMMU_IOAS_MAP_READABLE,
});
const DESTROY = struct(iommufd.iommu_destroy, { size_at: u32, id: u32 });
const IOAS_ALLOC = struct(iommufd.iommu_ioas_alloc, { size_at: u32, flags: u32, out_ioas_id: u32 });
const IOVA_RANGES = struct(iommufd.iommu_ioas_iova_ranges, {
  size_at: u32,
  ioas_id: u32,
  num_iovas: u32,
  out_iova_alignment: x64,
});
const ALLOW_IOVAS = struct(iommufd.iommu_ioas_allow_iovas, { size_at: u32, ioas_id: u32, num_iovas: u32 });
const MAP = struct(iommufd.iommu_ioas_map, {
  size_at: u32,
  flags: MAP_FLAGS,
  ioas_id: u32,
  user_va: x64,
  length: x64,
  iova: x64,
});
const COPY = struct(iommufd.iommu_ioas_copy, {
  size_at: u32,
  flags: MAP_FLAGS,
  dst_ioas_id: u32,
  src_ioas_id: u32,
  length: x64,
  dst_iova: x64,
  src_iova: x64,
});
const UNMAP = struct(iommufd.iommu_ioas_unmap, { size_at: u32, ioas_id: u32, iova: x64, length: x64 });
const OPTION = struct(iommufd.iommu_option, {
  size_at: u32,
  option_id: oneOf({
    RLIMIT_MODE: iommufd.IOMMU_OPTION_RLIMIT_MODE,
    HUGE_PAGES: iommufd.IOMMU_OPTION_HUGE_PAGES,
  }),
  op: oneOf({ SET: iommufd.IOMMU_OPTION_OP_SET, GET: iommufd.IOMMU_OPTION_OP_GET }, u16),
  object_id: u32,
  val64: x64,
});
const VFIO_IOAS = struct(iommufd.iommu_vfio_ioas, {
  size_at: u32,
  ioas_id: u32,
  op: oneOf(
    {
      GET: iommufd.IOMMU_VFIO_IOAS_GET,
      SET: iommufd.IOMMU_VFIO_IOAS_SET,
      CLEAR: iommufd.IOMMU_VFIO_IOAS_CLEAR,
    },
    u16,
  ),
});
const HWPT_ALLOC = struct(iommufd.iommu_hwpt_alloc, {
  size_at: u32,
  flags: flags({
    NEST_PARENT: iommufd.IOMMU_HWPT_ALLOC_NEST_PARENT,
    DIRTY_TRACKING: iommufd.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    FAULT_ID_VALID: iommufd.IOMMU_HWPT_FAULT_ID_VALID,
  }),
  dev_id: u32,
  pt_id: u32,
  out_hwpt_id: u32,
  data_type: oneOf({ NONE: iommufd.IOMMU_HWPT_DATA_NONE, VTD_S1: iommufd.IOMMU_HWPT_DATA_VTD_S1 }),
  data_len: u32,
  fault_id: u32,
});
const HW_INFO = struct(iommufd.iommu_hw_info, {
  size_at: u32,
  flags: u32,
  dev_id: u32,
  data_len: u32,
  out_data_type: oneOf({
    NONE: iommufd.IOMMU_HW_INFO_TYPE_NONE,
    INTEL_VTD: iommufd.IOMMU_HW_INFO_TYPE_INTEL_VTD,
  }),
  out_max_pasid_log2: u8,
  out_capabilities: flags(
    {
      DIRTY_TRACKING: iommufd.IOMMU_HW_CAP_DIRTY_TRACKING,
      PCI_PASID_EXEC: iommufd.IOMMU_HW_CAP_PCI_PASID_EXEC,
      PCI_PASID_PRIV: iommufd.IOMMU_HW_CAP_PCI_PASID_PRIV,
    },
    8,
  ),
});
const SET_TRACKING = struct(iommufd.iommu_hwpt_set_dirty_tracking, {
  size_at: u32,
  flags: flags({ ENABLE: iommufd.IOMMU_HWPT_DIRTY_TRACKING_ENABLE }),
  hwpt_id: u32,
});
const GET_BITMAP = struct(iommufd.iommu_hwpt_get_dirty_bitmap, {
  size_at: u32,
  hwpt_id: u32,
  flags: flags({ NO_CLEAR: iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR }),
  iova: x64,
  length: x64,
  page_size: x64,
});
const INVALIDATE = struct(iommufd.iommu_hwpt_invalidate, {
  size_at: u32,
  hwpt_id: u32,
  data_type: u32,
  entry_len: u32,
  entry_num: u32,
});
const FAULT_ALLOC = struct(iommufd.iommu_fault_alloc, {
  size_at: u32,
  flags: u32,
  out_fault_id: u32,
  out_fault_fd: s32,
});

const HW_DATA: Pointer = {
  at: iommufd.iommu_hw_info.data_uptr,
  name: 'data',
  length: { kind: 'size32', size: iommufd.iommu_hw_info.data_len },
  when: 'after',
  flags: 0,
};
const DIRTY_DATA: Pointer = {
  at: iommufd.iommu_hwpt_get_dirty_bitmap.data,
  name: 'bitmap',
  length: {
    kind: 'bitmap',
    bytes: iommufd.iommu_hwpt_get_dirty_bitmap.length,
    page: iommufd.iommu_hwpt_get_dirty_bitmap.page_size,
  },
  when: 'after',
  flags: 0,
};

const MAP_GIVEN = ['size', 'flags', 'ioas_id', 'user_va', 'length', 'iova'];
const COPY_GIVEN = ['size', 'flags', 'dst_ioas_id', 'src_ioas_id', 'length', 'dst_iova', 'src_iova'];
const HWPT_GIVEN = ['size', 'flags', 'dev_id', 'pt_id', 'data_type', 'data_len', 'fault_id'];
const BITMAP_GIVEN = ['size', 'hwpt_id', 'flags', 'iova', 'length', 'page_size'];

export const IOMMUFD_REQUESTS: readonly Request[] = [
  call('IOMMU_DESTROY', iommufd.IOMMU_DESTROY, withStruct(DESTROY, ['size', 'id'], ['id'])),
  call('IOMMU_IOAS_ALLOC', iommufd.IOMMU_IOAS_ALLOC, withStruct(IOAS_ALLOC, ['size', 'flags'])),
  call(
    'IOMMU_IOAS_IOVA_RANGES',
    iommufd.IOMMU_IOAS_IOVA_RANGES,
    withStruct(IOVA_RANGES, ['size', 'ioas_id', 'num_iovas'], ['ioas_id']),
    { pointers: [rangesAt(iommufd.iommu_ioas_iova_ranges, 'after')] },
  ),
  call(
    'IOMMU_IOAS_ALLOW_IOVAS',
    iommufd.IOMMU_IOAS_ALLOW_IOVAS,
    withStruct(ALLOW_IOVAS, ['size', 'ioas_id', 'num_iovas', 'ranges'], ['ioas_id']),
    { pointers: [rangesAt(iommufd.iommu_ioas_allow_iovas, 'before')] },
  ),
  call('IOMMU_IOAS_MAP', iommufd.IOMMU_IOAS_MAP, withStruct(MAP, MAP_GIVEN, ['ioas_id', 'iova', 'length'])),
  call('IOMMU_IOAS_COPY', iommufd.IOMMU_IOAS_COPY, withStruct(COPY, COPY_GIVEN, ['dst_ioas_id', 'src_ioas_id'])),
  call(
    'IOMMU_IOAS_UNMAP',
    iommufd.IOMMU_IOAS_UNMAP,
    withStruct(UNMAP, ['size', 'ioas_id', 'iova', 'length'], ['ioas_id', 'iova']),
  ),
  call(
    'IOMMU_OPTION',
    iommufd.IOMMU_OPTION,
    withStruct(OPTION, ['size', 'option_id', 'op', 'object_id', 'val64'], ['op', 'option_id']),
  ),
  call('IOMMU_VFIO_IOAS', iommufd.IOMMU_VFIO_IOAS, withStruct(VFIO_IOAS, ['size', 'op'], ['op'])),
  call('IOMMU_HWPT_ALLOC', iommufd.IOMMU_HWPT_ALLOC, withStruct(HWPT_ALLOC, HWPT_GIVEN, ['flags', 'pt_id'])),
  call(
    'IOMMU_GET_HW_INFO',
    iommufd.IOMMU_GET_HW_INFO,
    withStruct(HW_INFO, ['size', 'flags', 'dev_id', 'data_len'], ['dev_id']),
    { pointers: [HW_DATA] },
  ),
  call(
    'IOMMU_HWPT_SET_DIRTY_TRACKING',
    iommufd.IOMMU_HWPT_SET_DIRTY_TRACKING,
    withStruct(SET_TRACKING, ['size', 'flags', 'hwpt_id'], ['hwpt_id', 'flags']),
  ),
  call(
    'IOMMU_HWPT_GET_DIRTY_BITMAP',
    iommufd.IOMMU_HWPT_GET_DIRTY_BITMAP,
    withStruct(GET_BITMAP, BITMAP_GIVEN, ['hwpt_id', 'iova', 'length']),
    { pointers: [DIRTY_DATA] },
  ),
  call(
    'IOMMU_HWPT_INVALIDATE',
    iommufd.IOMMU_HWPT_INVALIDATE,
    withStruct(INVALIDATE, ['size', 'hwpt_id', 'data_type', 'entry_len', 'entry_num'], ['hwpt_id']),
  ),
  call('IOMMU_FAULT_QUEUE_ALLOC', iommufd.IOMMU_FAULT_QUEUE_ALLOC, withStruct(FAULT_ALLOC, ['size', 'flags']), {
    makes: iommufd.iommu_fault_alloc.out_fault_fd,
  }),
];
