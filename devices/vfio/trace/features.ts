// The sub-features of VFIO_DEVICE_FEATURE as data. Offsets of pointers and of fds are from the start of the whole argument (its header is 8
// bytes). Read by decode.ts and pointers.ts. linux/vfio.h
import * as vfio from '../../../native/abi/vfio.ts';
import { migState } from './device-requests.ts';
import { flags, oneOf, type Struct, s32, struct, u32, x64 } from './fields.ts';
import type { Feature, Pointer } from './request.ts';

const DATA = vfio.vfio_device_feature.data;

const MIGRATION = struct(vfio.vfio_device_feature_migration, {
  flags: flags(
    {
      STOP_COPY: vfio.VFIO_MIGRATION_STOP_COPY,
      P2P: vfio.VFIO_MIGRATION_P2P,
      PRE_COPY: vfio.VFIO_MIGRATION_PRE_COPY,
    },
    8,
  ),
});
const STATE = struct(vfio.vfio_device_feature_mig_state, { device_state: migState, data_fd: s32 });
const WAKEUP = struct(vfio.vfio_device_low_power_entry_with_wakeup, { wakeup_eventfd: s32 });
const LOG_START = struct(vfio.vfio_device_feature_dma_logging_control, { page_size: x64, num_ranges: u32 });
const LOG_RANGE = struct(vfio.vfio_device_feature_dma_logging_range, { iova: x64, length: x64 });
const LOG_REPORT = struct(vfio.vfio_device_feature_dma_logging_report, { iova: x64, length: x64, page_size: x64 });
const DATA_SIZE = struct(vfio.vfio_device_feature_mig_data_size, { stop_copy_length: x64 });
const BUS_MASTER = struct(vfio.vfio_device_feature_bus_master, {
  op: oneOf({ CLEAR_MASTER: vfio.VFIO_DEVICE_FEATURE_CLEAR_MASTER, SET_MASTER: vfio.VFIO_DEVICE_FEATURE_SET_MASTER }),
});

const START_RANGES: Pointer = {
  at: DATA + vfio.vfio_device_feature_dma_logging_control.ranges,
  name: 'ranges',
  length: { kind: 'count', count: DATA + vfio.vfio_device_feature_dma_logging_control.num_ranges, element: LOG_RANGE },
  when: 'before',
  flags: vfio.VFIO_DEVICE_FEATURE_SET,
};
const REPORT_BITMAP: Pointer = {
  at: DATA + vfio.vfio_device_feature_dma_logging_report.bitmap,
  name: 'bitmap',
  length: {
    kind: 'bitmap',
    bytes: DATA + vfio.vfio_device_feature_dma_logging_report.length,
    page: DATA + vfio.vfio_device_feature_dma_logging_report.page_size,
  },
  when: 'after',
  flags: vfio.VFIO_DEVICE_FEATURE_GET,
};

type Rest = Partial<Pick<Feature, 'givenBy' | 'given' | 'key' | 'pointers' | 'makes'>>;

function row(name: string, feature: number, shape: Struct | null, rest: Rest = {}): Feature {
  const { givenBy = 'set', given = [], key = [], pointers = [], makes = null } = rest;
  return { name, feature, struct: shape, givenBy, given, key, pointers, makes };
}

export const FEATURES: readonly Feature[] = [
  row('PCI_VF_TOKEN', vfio.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, null),
  row('MIGRATION', vfio.VFIO_DEVICE_FEATURE_MIGRATION, MIGRATION),
  row('MIG_DEVICE_STATE', vfio.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, STATE, {
    given: ['device_state'],
    key: ['device_state'],
    makes: DATA + vfio.vfio_device_feature_mig_state.data_fd,
  }),
  row('LOW_POWER_ENTRY', vfio.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, null),
  row('LOW_POWER_ENTRY_WITH_WAKEUP', vfio.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, WAKEUP, {
    given: ['wakeup_eventfd'],
  }),
  row('LOW_POWER_EXIT', vfio.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, null),
  row('DMA_LOGGING_START', vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_START, LOG_START, {
    given: ['page_size', 'num_ranges', 'ranges'],
    pointers: [START_RANGES],
  }),
  row('DMA_LOGGING_STOP', vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, null),
  row('DMA_LOGGING_REPORT', vfio.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, LOG_REPORT, {
    givenBy: 'get',
    given: ['iova', 'length', 'page_size'],
    key: ['iova', 'length'],
    pointers: [REPORT_BITMAP],
  }),
  row('MIG_DATA_SIZE', vfio.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, DATA_SIZE),
  // Linux after 6.14, so not in native/abi. feature-v2.ts
  row('MIG_PRECOPY_INFOv2', 12, null),
  row('BUS_MASTER', vfio.VFIO_DEVICE_FEATURE_BUS_MASTER, BUS_MASTER, { given: ['op'], key: ['op'] }),
];
