// The ioctls of VFIO device and data fds as data: names, structs, what is given and what comes back. Read by decode.ts and pointers.ts.
// linux/vfio.h. VFIO_DEVICE_FEATURE's own structs are in features.ts.
import * as vfio from '../../../native/abi/vfio.ts';
import { capabilitiesOf } from '../info-caps.ts';
import {
  flags,
  listOf,
  oneOf,
  readStruct,
  type Struct,
  s32,
  struct,
  u8,
  u16,
  u32,
  type Value,
  type Values,
  x32,
  x64,
} from './fields.ts';
import { call, NONE, type Request, withStruct } from './request.ts';

/** What a capability chain may hold, by id. */
export type Capabilities = Readonly<Record<number, { readonly name: string; readonly struct: Struct | null }>>;

/** The chain whose first offset lies at `at`; a capability that is not known keeps its number. */
export function capabilities(known: Capabilities, at: number): (view: DataView, base: number) => Values {
  return (view, base) => {
    if (base + at + 4 > view.byteLength) return {};
    const first = view.getUint32(base + at, true);
    const found = capabilitiesOf(view, first).map(({ id, version, offset }): Values => {
      const row = known[id];
      const name = row === undefined ? `capability ${id}` : row.name;
      return { cap: name, version, ...(row?.struct ? readStruct(row.struct, view, offset) : {}) };
    });
    return found.length === 0 ? {} : { capabilities: found };
  };
}

const DEVICE_FLAGS = {
  RESET: vfio.VFIO_DEVICE_FLAGS_RESET,
  PCI: vfio.VFIO_DEVICE_FLAGS_PCI,
  PLATFORM: vfio.VFIO_DEVICE_FLAGS_PLATFORM,
  AMBA: vfio.VFIO_DEVICE_FLAGS_AMBA,
  AP: vfio.VFIO_DEVICE_FLAGS_AP,
  FSL_MC: vfio.VFIO_DEVICE_FLAGS_FSL_MC,
  CAPS: vfio.VFIO_DEVICE_FLAGS_CAPS,
  CDX: vfio.VFIO_DEVICE_FLAGS_CDX,
};
const REGION_FLAGS = {
  READ: vfio.VFIO_REGION_INFO_FLAG_READ,
  WRITE: vfio.VFIO_REGION_INFO_FLAG_WRITE,
  MMAP: vfio.VFIO_REGION_INFO_FLAG_MMAP,
  CAPS: vfio.VFIO_REGION_INFO_FLAG_CAPS,
};
const IRQ_FLAGS = {
  EVENTFD: vfio.VFIO_IRQ_INFO_EVENTFD,
  MASKABLE: vfio.VFIO_IRQ_INFO_MASKABLE,
  AUTOMASKED: vfio.VFIO_IRQ_INFO_AUTOMASKED,
  NORESIZE: vfio.VFIO_IRQ_INFO_NORESIZE,
};
const IRQ_SET_FLAGS = {
  DATA_NONE: vfio.VFIO_IRQ_SET_DATA_NONE,
  DATA_BOOL: vfio.VFIO_IRQ_SET_DATA_BOOL,
  DATA_EVENTFD: vfio.VFIO_IRQ_SET_DATA_EVENTFD,
  ACTION_MASK: vfio.VFIO_IRQ_SET_ACTION_MASK,
  ACTION_UNMASK: vfio.VFIO_IRQ_SET_ACTION_UNMASK,
  ACTION_TRIGGER: vfio.VFIO_IRQ_SET_ACTION_TRIGGER,
};

const ATOMIC = struct(vfio.vfio_device_info_cap_pci_atomic_comp, {
  flags: flags({
    COMP32: vfio.VFIO_PCI_ATOMIC_COMP32,
    COMP64: vfio.VFIO_PCI_ATOMIC_COMP64,
    COMP128: vfio.VFIO_PCI_ATOMIC_COMP128,
  }),
});
const DEVICE_CAPS: Capabilities = {
  [vfio.VFIO_DEVICE_INFO_CAP_ZPCI_BASE]: { name: 'ZPCI_BASE', struct: null },
  [vfio.VFIO_DEVICE_INFO_CAP_ZPCI_GROUP]: { name: 'ZPCI_GROUP', struct: null },
  [vfio.VFIO_DEVICE_INFO_CAP_ZPCI_UTIL]: { name: 'ZPCI_UTIL', struct: null },
  [vfio.VFIO_DEVICE_INFO_CAP_ZPCI_PFIP]: { name: 'ZPCI_PFIP', struct: null },
  [vfio.VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP]: { name: 'PCI_ATOMIC_COMP', struct: ATOMIC },
};
const DEVICE_INFO = struct(
  vfio.vfio_device_info,
  { argsz: u32, flags: flags(DEVICE_FLAGS), num_regions: u32, num_irqs: u32, cap_offset: u32 },
  capabilities(DEVICE_CAPS, vfio.vfio_device_info.cap_offset),
);

const AREA = struct(vfio.vfio_region_sparse_mmap_area, { offset: x64, size_at: x64 });
const SPARSE = struct(vfio.vfio_region_info_cap_sparse_mmap, { nr_areas: u32 }, (view, base) => {
  const layout = vfio.vfio_region_info_cap_sparse_mmap;
  if (base + layout.areas > view.byteLength) return {};
  return { areas: listOf(AREA, view, base + layout.areas, view.getUint32(base + layout.nr_areas, true)) };
});
const REGION_CAPS: Capabilities = {
  [vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP]: { name: 'SPARSE_MMAP', struct: SPARSE },
  [vfio.VFIO_REGION_INFO_CAP_TYPE]: {
    name: 'TYPE',
    struct: struct(vfio.vfio_region_info_cap_type, { type: x32, subtype: u32 }),
  },
  [vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE]: { name: 'MSIX_MAPPABLE', struct: null },
};
const REGION_INFO = struct(
  vfio.vfio_region_info,
  { argsz: u32, flags: flags(REGION_FLAGS), index: u32, cap_offset: u32, size_at: x64, offset: x64 },
  capabilities(REGION_CAPS, vfio.vfio_region_info.cap_offset),
);
const IRQ_INFO = struct(vfio.vfio_irq_info, { argsz: u32, flags: flags(IRQ_FLAGS), index: u32, count: u32 });

const IRQ_SET = struct(
  vfio.vfio_irq_set,
  { argsz: u32, flags: flags(IRQ_SET_FLAGS), index: u32, start: u32, count: u32 },
  (view, base) => {
    const layout = vfio.vfio_irq_set;
    if (base + layout.data > view.byteLength) return {};
    const bits = view.getUint32(base + layout.flags, true);
    const count = view.getUint32(base + layout.count, true);
    if ((bits & vfio.VFIO_IRQ_SET_DATA_EVENTFD) !== 0) {
      return { eventfds: listOf(s32, view, base + layout.data, count) };
    }
    return (bits & vfio.VFIO_IRQ_SET_DATA_BOOL) !== 0 ? { bools: listOf(u8, view, base + layout.data, count) } : {};
  },
);

const DEPENDENT = struct(vfio.vfio_pci_dependent_device, { group_id: u32, segment: u16, bus: u8, devfn: u8 });
const HOT_RESET_INFO = struct(
  vfio.vfio_pci_hot_reset_info,
  {
    argsz: u32,
    flags: flags({
      DEV_ID: vfio.VFIO_PCI_HOT_RESET_FLAG_DEV_ID,
      DEV_ID_OWNED: vfio.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED,
    }),
    count: u32,
  },
  counted('devices', vfio.vfio_pci_hot_reset_info.count, vfio.vfio_pci_hot_reset_info.devices, DEPENDENT),
);
const HOT_RESET = struct(
  vfio.vfio_pci_hot_reset,
  { argsz: u32, flags: x32, count: u32 },
  counted('group_fds', vfio.vfio_pci_hot_reset.count, vfio.vfio_pci_hot_reset.group_fds, s32),
);

function counted(
  name: string,
  count: number,
  at: number,
  element: Struct | typeof s32,
): (view: DataView, base: number) => Values {
  return (view, base) => {
    if (base + at > view.byteLength) return {};
    const list: Value[] = listOf(element, view, base + at, view.getUint32(base + count, true));
    return list.length === 0 ? {} : { [name]: list };
  };
}

const GFX_PLANE = struct(vfio.vfio_device_gfx_plane_info, {
  argsz: u32,
  flags: flags({
    PROBE: vfio.VFIO_GFX_PLANE_TYPE_PROBE,
    DMABUF: vfio.VFIO_GFX_PLANE_TYPE_DMABUF,
    REGION: vfio.VFIO_GFX_PLANE_TYPE_REGION,
  }),
  drm_plane_type: u32,
  drm_format: x32,
  drm_format_mod: x64,
  width: u32,
  height: u32,
  stride: u32,
  size_at: u32,
  region_index: u32,
});
const IOEVENTFD = struct(vfio.vfio_device_ioeventfd, { argsz: u32, flags: u32, offset: x64, data: x64, fd: s32 });
const BIND = struct(vfio.vfio_device_bind_iommufd, { argsz: u32, flags: x32, iommufd: s32, out_devid: u32 });
const ATTACH = struct(vfio.vfio_device_attach_iommufd_pt, { argsz: u32, flags: x32, pt_id: u32 });
const DETACH = struct(vfio.vfio_device_detach_iommufd_pt, { argsz: u32, flags: x32 });
const PRECOPY = struct(vfio.vfio_precopy_info, { argsz: u32, flags: x32, initial_bytes: x64, dirty_bytes: x64 });

export const IRQ_INDEX = { INTX: 0, MSI: 1, MSIX: 2, ERR: 3, REQ: 4 };
export const MIG_STATES = {
  ERROR: vfio.VFIO_DEVICE_STATE_ERROR,
  STOP: vfio.VFIO_DEVICE_STATE_STOP,
  RUNNING: vfio.VFIO_DEVICE_STATE_RUNNING,
  STOP_COPY: vfio.VFIO_DEVICE_STATE_STOP_COPY,
  RESUMING: vfio.VFIO_DEVICE_STATE_RESUMING,
  RUNNING_P2P: vfio.VFIO_DEVICE_STATE_RUNNING_P2P,
  PRE_COPY: vfio.VFIO_DEVICE_STATE_PRE_COPY,
  PRE_COPY_P2P: vfio.VFIO_DEVICE_STATE_PRE_COPY_P2P,
};
export const migState = oneOf(MIG_STATES);

const IRQ_GIVEN = ['argsz', 'flags', 'index', 'start', 'count', 'eventfds', 'bools'];
const IOEVENTFD_GIVEN = ['argsz', 'flags', 'offset', 'data', 'fd'];

export const DEVICE_REQUESTS: readonly Request[] = [
  call('VFIO_DEVICE_GET_INFO', vfio.VFIO_DEVICE_GET_INFO, withStruct(DEVICE_INFO, ['argsz'])),
  call(
    'VFIO_DEVICE_GET_REGION_INFO',
    vfio.VFIO_DEVICE_GET_REGION_INFO,
    withStruct(REGION_INFO, ['argsz', 'index'], ['index']),
  ),
  call('VFIO_DEVICE_GET_IRQ_INFO', vfio.VFIO_DEVICE_GET_IRQ_INFO, withStruct(IRQ_INFO, ['argsz', 'index'], ['index'])),
  call(
    'VFIO_DEVICE_SET_IRQS',
    vfio.VFIO_DEVICE_SET_IRQS,
    withStruct(IRQ_SET, IRQ_GIVEN, ['index', 'flags', 'start', 'count']),
  ),
  call('VFIO_DEVICE_RESET', vfio.VFIO_DEVICE_RESET, NONE),
  call(
    'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO',
    vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
    withStruct(HOT_RESET_INFO, ['argsz']),
  ),
  call(
    'VFIO_DEVICE_PCI_HOT_RESET',
    vfio.VFIO_DEVICE_PCI_HOT_RESET,
    withStruct(HOT_RESET, ['argsz', 'flags', 'count', 'group_fds'], ['count']),
  ),
  call(
    'VFIO_DEVICE_QUERY_GFX_PLANE',
    vfio.VFIO_DEVICE_QUERY_GFX_PLANE,
    withStruct(GFX_PLANE, ['argsz', 'flags', 'drm_plane_type'], ['flags']),
  ),
  call('VFIO_DEVICE_GET_GFX_DMABUF', vfio.VFIO_DEVICE_GET_GFX_DMABUF, { kind: 'int', name: 'dmabuf_id' }),
  call('VFIO_DEVICE_IOEVENTFD', vfio.VFIO_DEVICE_IOEVENTFD, withStruct(IOEVENTFD, IOEVENTFD_GIVEN, ['offset', 'data'])),
  call('VFIO_DEVICE_BIND_IOMMUFD', vfio.VFIO_DEVICE_BIND_IOMMUFD, withStruct(BIND, ['argsz', 'flags', 'iommufd'])),
  call(
    'VFIO_DEVICE_ATTACH_IOMMUFD_PT',
    vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    withStruct(ATTACH, ['argsz', 'flags', 'pt_id']),
  ),
  call('VFIO_DEVICE_DETACH_IOMMUFD_PT', vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, withStruct(DETACH, ['argsz', 'flags'])),
];

export const DATA_REQUESTS: readonly Request[] = [
  call('VFIO_MIG_GET_PRECOPY_INFO', vfio.VFIO_MIG_GET_PRECOPY_INFO, withStruct(PRECOPY, ['argsz', 'flags'])),
];
