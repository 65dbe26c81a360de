// Ioctl arguments as a C compiler lays them out, for decode.test.ts: each is filled in by name and printed as "LABEL REQUEST HEX".
// linux/vfio.h where the installed one has it; what came later (and linux/iommufd.h) is declared here as the kernel documents it.
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>

typedef __u64 u64;
typedef __u32 u32;
typedef __u16 u16;

#ifndef VFIO_MIG_GET_PRECOPY_INFO
#define VFIO_MIG_GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
struct vfio_precopy_info { u32 argsz, flags; __aligned_u64 initial_bytes, dirty_bytes; };
#endif
#ifndef VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
struct vfio_device_feature_mig_data_size { __aligned_u64 stop_copy_length; };
#endif
#ifndef VFIO_DEVICE_BIND_IOMMUFD
#define VFIO_DEVICE_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
struct vfio_device_bind_iommufd { u32 argsz, flags; __s32 iommufd; u32 out_devid; };
struct vfio_device_attach_iommufd_pt { u32 argsz, flags, pt_id; };
#endif
#define VFIO_DEVICE_FEATURE_BUS_MASTER_ 10
#define PRE_COPY_FLAG (1 << 2)

#define IOMMU(n) _IO(';', n)
struct ioas_map { u32 size, flags, ioas_id, pad; u64 user_va, length, iova; };
struct ioas_unmap { u32 size, ioas_id; u64 iova, length; };
struct ioas_ranges { u32 size, ioas_id, num_iovas, pad; u64 allowed, alignment; };
struct range { u64 start, last; };
struct hwpt_alloc { u32 size, flags, dev_id, pt_id, out_hwpt_id, pad, data_type, data_len; u64 data_uptr; u32 fault_id, pad2; };
struct hwpt_bitmap { u32 size, hwpt_id, flags, pad; u64 iova, length, page_size, data; };
struct hwpt_tracking { u32 size, flags, hwpt_id, pad; };
struct option { u32 size, option_id; u16 op, pad; u32 object_id; u64 val64; };
struct hw_info { u32 size, flags, dev_id, data_len; u64 data_uptr; u32 out_data_type; __u8 log2, pad[3]; u64 out_capabilities; };

static void show(const char *label, unsigned long request, const void *bytes, size_t size)
{
	printf("%s %lu ", label, request);
	for (size_t i = 0; i < size; i++)
		printf("%02x", ((const unsigned char *)bytes)[i]);
	printf("\n");
}
#define SHOW(label, request, value) show(label, request, &(value), sizeof(value))

/* A feature's struct behind its header. */
static void feature(const char *label, u32 flags, const void *data, size_t size)
{
	unsigned char bytes[256] = { 0 };
	struct vfio_device_feature header = { .argsz = sizeof(header) + size, .flags = flags };

	memcpy(bytes, &header, sizeof(header));
	if (size)
		memcpy(bytes + sizeof(header), data, size);
	show(label, VFIO_DEVICE_FEATURE, bytes, sizeof(header) + size);
}
#define FEATURE(label, flags, value) feature(label, flags, &(value), sizeof(value))

static void infos(void)
{
	struct vfio_device_info info = { .argsz = sizeof(info), .flags = VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI,
		.num_regions = 9, .num_irqs = 5 };
	struct { struct vfio_region_info info; struct vfio_region_info_cap_sparse_mmap cap;
		struct vfio_region_sparse_mmap_area areas[2]; struct vfio_info_cap_header msix; } region = { .info = {
		.argsz = sizeof(region), .flags = 15, .index = 2, .cap_offset = sizeof(region.info), .size = 0x4000,
		.offset = 2ULL << 40 }, .cap = { .header = { .id = 1, .version = 1, .next = 80 }, .nr_areas = 2 },
		.areas = { { 0, 0x1000 }, { 0x2000, 0x2000 } }, .msix = { .id = 3, .version = 1 } };
	struct vfio_irq_info irq = { .argsz = sizeof(irq), .flags = 9, .index = 2, .count = 64 };
	struct { struct vfio_irq_set set; __s32 fds[2]; } set = { { .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD |
		VFIO_IRQ_SET_ACTION_TRIGGER, .index = 2, .start = 1, .count = 2 }, { 31, -1 } };
	struct vfio_irq_set none = { .argsz = sizeof(none), .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, .count = 1 };
	struct vfio_group_status status = { .argsz = sizeof(status), .flags = VFIO_GROUP_FLAGS_VIABLE };

	SHOW("device-info", VFIO_DEVICE_GET_INFO, info);
	SHOW("region-info", VFIO_DEVICE_GET_REGION_INFO, region);
	SHOW("irq-info", VFIO_DEVICE_GET_IRQ_INFO, irq);
	SHOW("set-irqs", VFIO_DEVICE_SET_IRQS, set);
	SHOW("set-irqs-none", VFIO_DEVICE_SET_IRQS, none);
	SHOW("group-status", VFIO_GROUP_GET_STATUS, status);
	show("device-fd", VFIO_GROUP_GET_DEVICE_FD, "0000:65:00.0", 13);
}

static void container(void)
{
	struct { struct vfio_iommu_type1_info info; struct vfio_iommu_type1_info_cap_iova_range cap; struct vfio_iova_range ranges[2];
		struct vfio_iommu_type1_info_cap_migration migration; struct vfio_iommu_type1_info_dma_avail avail; } info = { .info = {
		.argsz = sizeof(info), .flags = 3, .iova_pgsizes = 0x40201000, .cap_offset = 24 },
		.cap = { .header = { 1, 1, 72 }, .nr_iovas = 2 }, .ranges = { { 0, 0xfedfffff }, { 0xfef00000, ~0ULL } },
		.migration = { .header = { 2, 1, 104 }, .pgsize_bitmap = 4096, .max_dirty_bitmap_size = 1 << 28 },
		.avail = { .header = { 3, 1, 0 }, .avail = 65535 } };
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = 3, .vaddr = 0x7f0000000000, .iova = 1ULL << 32,
		.size = 1 << 30 };
	struct { struct vfio_iommu_type1_dma_unmap unmap; struct vfio_bitmap bitmap; } unmap = { { .argsz = sizeof(unmap),
		.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, .iova = 0x1000, .size = 0x40000 }, { 4096, 8, (void *)0x1234 } };
	struct { struct vfio_iommu_type1_dirty_bitmap dirty; struct vfio_iommu_type1_dirty_bitmap_get get; } get = { { .argsz = sizeof(get),
		.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP }, { 0, 1 << 20, { 4096, 32, (void *)0x1234 } } };
	struct vfio_iommu_type1_dirty_bitmap start = { .argsz = sizeof(start), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START };

	SHOW("type1-info", VFIO_IOMMU_GET_INFO, info);
	SHOW("map", VFIO_IOMMU_MAP_DMA, map);
	SHOW("unmap", VFIO_IOMMU_UNMAP_DMA, unmap);
	SHOW("dirty-get", VFIO_IOMMU_DIRTY_PAGES, get);
	SHOW("dirty-start", VFIO_IOMMU_DIRTY_PAGES, start);
}

static void features(void)
{
	struct vfio_device_feature_migration migration = { .flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | PRE_COPY_FLAG };
	struct vfio_device_feature_mig_state state = { .device_state = VFIO_DEVICE_STATE_STOP_COPY, .data_fd = 42 };
	struct vfio_device_feature_dma_logging_control control = { .page_size = 4096, .num_ranges = 2, .ranges = 0x1234 };
	struct vfio_device_feature_dma_logging_range ranges[2] = { { 0, 0xa0000 }, { 1ULL << 32, 1 << 20 } };
	struct vfio_device_feature_dma_logging_report report = { .iova = 0x1000, .length = 1 << 20, .page_size = 4096, .bitmap = 0x1234 };
	struct vfio_device_feature_mig_data_size size = { .stop_copy_length = 5000 };
	struct vfio_device_low_power_entry_with_wakeup wakeup = { .wakeup_eventfd = 7 };
	struct vfio_precopy_info precopy = { .argsz = sizeof(precopy), .initial_bytes = 4096, .dirty_bytes = 12 };
	u32 master = 1;

	FEATURE("migration", VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION, migration);
	FEATURE("set-state", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, state);
	FEATURE("get-state", VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, state);
	FEATURE("log-start", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, control);
	SHOW("log-ranges", VFIO_DEVICE_FEATURE, ranges);
	FEATURE("log-report", VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, report);
	feature("log-stop", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0);
	feature("log-probe", VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, NULL, 0);
	FEATURE("data-size", VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, size);
	feature("low-power", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0);
	FEATURE("wakeup", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, wakeup);
	feature("low-power-exit", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0);
	FEATURE("bus-master", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_BUS_MASTER_, master);
	feature("vf-token", VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, "0123456789abcdef", 16);
	feature("unknown", VFIO_DEVICE_FEATURE_GET | 77, NULL, 0);
	SHOW("precopy", VFIO_MIG_GET_PRECOPY_INFO, precopy);
}

static void iommufd(void)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = 9, .out_devid = 3 };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = 4 };
	struct ioas_map map = { sizeof(map), 7, 2, 0, 0x7f0000000000, 1 << 30, 1ULL << 32 };
	struct ioas_unmap unmap = { sizeof(unmap), 2, 0, ~0ULL };
	struct ioas_ranges ranges = { sizeof(ranges), 2, 2, 0, 0x1234, 4096 };
	struct range list[2] = { { 0, 0xfedfffff }, { 0xfef00000, 0x7fffffffff } };
	struct hwpt_alloc alloc = { sizeof(alloc), 2, 3, 2, 5 };
	struct hwpt_bitmap bitmap = { sizeof(bitmap), 5, 1, 0, 0, 1 << 20, 4096, 0x1234 };
	struct hwpt_tracking tracking = { sizeof(tracking), 1, 5, 0 };
	struct option option = { sizeof(option), 1, 1, 0, 0, 1 };
	struct hw_info hw = { sizeof(hw), 0, 3, 24, 0x1234, 1, 20, { 0 }, 1 };
	struct range vtd = { 0x11, 0x22 };

	SHOW("bind", VFIO_DEVICE_BIND_IOMMUFD, bind);
	SHOW("attach", VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach);
	SHOW("ioas-map", IOMMU(0x85), map);
	SHOW("ioas-unmap", IOMMU(0x86), unmap);
	SHOW("ioas-ranges", IOMMU(0x84), ranges);
	SHOW("ioas-list", IOMMU(0x84), list);
	SHOW("hwpt-alloc", IOMMU(0x89), alloc);
	SHOW("hwpt-bitmap", IOMMU(0x8c), bitmap);
	SHOW("hwpt-tracking", IOMMU(0x8b), tracking);
	SHOW("option", IOMMU(0x87), option);
	SHOW("hw-info", IOMMU(0x8a), hw);
	SHOW("hw-data", IOMMU(0x8a), vtd);
}

int main(void)
{
	infos();
	container();
	features();
	iommufd();
	return 0;
}
