// Made by scripts/gen-abi-legacy.mjs out of the texts of the older VFIO migration interfaces: do not edit.
// A struct is its size and its fields' offsets. A field called size is `size_at`; one that is itself a struct written in place is an
// object whose `at` is where it starts; offsets are from the start of the outermost struct. Used with DataView.
export const VFIO_REGION_TYPE_DEVICE_STATE = 2;
export const VFIO_REGION_SUBTYPE_DEVICE_STATE_CTL = 1;
export const VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG = 2;
export const VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_MEMORY = 3;
export const VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_DIRTYBITMAP = 4;
export const VFIO_DEVICE_STATE_INTERFACE_VERSION = 1;
export const VFIO_DEVICE_DATA_CAP_DEVICE_MEMORY = 1;
export const VFIO_DEVICE_DATA_CAP_SYSTEM_MEMORY = 2;
export const VFIO_DEVICE_STATE_CTL_RUNNING = 0;
export const VFIO_DEVICE_STATE_CTL_STOP = 1;
export const VFIO_DEVICE_STATE_CTL_LOGGING = 2;
export const VFIO_DEVICE_DATA_ACTION_GET_BUFFER = 1;
export const VFIO_DEVICE_DATA_ACTION_SET_BUFFER = 2;
export const VFIO_REGION_TYPE_MIGRATION_V7 = 2;
export const VFIO_REGION_TYPE_MIGRATION_V1 = 3;
export const VFIO_REGION_SUBTYPE_MIGRATION = 1;
export const VFIO_DEVICE_DIRTY_PFNS_NONE = 0;
export const VFIO_DEVICE_DIRTY_PFNS_ALL = 0xffffffffffffffffn;
export const vfio_device_state_ctl = { size: 68, version: 0, device_state: 4, caps: 8, device_config: { at: 12, action: 12, size_at: 20 }, device_memory: { at: 28, action: 28, size_at: 36, pos: 44 }, system_memory: { at: 52, start_addr: 52, page_nr: 60 } } as const;
export const vfio_device_migration_info_v7 = { size: 64, device_state: 0, reserved: 4, pending_bytes: 8, data_offset: 16, data_size: 24, start_pfn: 32, page_size: 40, total_pfns: 48, copied_pfns: 56 } as const;
export const vfio_device_migration_info_v1 = { size: 32, device_state: 0, reserved: 4, pending_bytes: 8, data_offset: 16, data_size: 24 } as const;
