// SPDX-License-Identifier: GPL-2.0-only
// See user.h.
#define _GNU_SOURCE
#include "user.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("FAIL ");
	vprintf(format, args);
	printf("\n");
	exit(1);
}

void same(unsigned long long a, unsigned long long b, const char *what, int line)
{
	if (a != b)
		die("line %d: %s: %#llx, %#llx", line, what, a, b);
}

int must(int result, const char *what)
{
	if (result < 0)
		die("%s: %s", what, strerror(errno));
	return result;
}

double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void take_caps(struct region *r, const struct vfio_region_info *info)
{
	uint32_t at = info->flags & VFIO_REGION_INFO_FLAG_CAPS ? info->cap_offset : 0;

	while (at) {
		const struct vfio_info_cap_header *cap = (const void *)((const char *)info + at);

		if (cap->id == VFIO_REGION_INFO_CAP_TYPE) {
			r->type = ((const struct vfio_region_info_cap_type *)cap)->type;
			r->subtype = ((const struct vfio_region_info_cap_type *)cap)->subtype;
		} else if (cap->id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
			const struct vfio_region_info_cap_sparse_mmap *sparse = (const void *)cap;

			r->map_at = sparse->areas[0].offset;
			r->map_size = sparse->areas[0].size;
		}
		at = cap->next;
	}
}

struct region region(struct device *d, uint32_t index)
{
	static uint64_t bytes[64];
	struct vfio_region_info *info = (void *)bytes;
	struct region r = { 0 };

	memset(bytes, 0, sizeof(bytes));
	info->argsz = sizeof(bytes);
	info->index = index;
	must(ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, info), "region info");
	r.at = info->offset;
	r.size = info->size;
	take_caps(&r, info);
	return r;
}

struct region find_region(struct device *d, uint32_t type, uint32_t subtype)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	must(ioctl(d->fd, VFIO_DEVICE_GET_INFO, &info), "device info");
	for (uint32_t i = VFIO_PCI_NUM_REGIONS; i < info.num_regions; i++) {
		struct region r = region(d, i);

		if (r.type == type && r.subtype == subtype)
			return r;
	}
	die("no region (%u,%u)", type, subtype);
}

void device_open(struct device *d, const char *group, const char *uuid)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.iova = RAM, .size = RAM_SIZE };
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	d->container = must(open("/dev/vfio/vfio", O_RDWR), "container");
	d->group = must(open(path, O_RDWR), path);
	must(ioctl(d->group, VFIO_GROUP_SET_CONTAINER, &d->container), "SET_CONTAINER");
	must(ioctl(d->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "SET_IOMMU");
	d->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map.vaddr = (uintptr_t)d->ram;
	must(ioctl(d->container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");
	d->fd = must(ioctl(d->group, VFIO_GROUP_GET_DEVICE_FD, uuid), "GET_DEVICE_FD");
	d->bar = region(d, VFIO_PCI_BAR0_REGION_INDEX).at;
	d->bar2 = region(d, VFIO_PCI_BAR2_REGION_INDEX).at;
	d->config = region(d, VFIO_PCI_CONFIG_REGION_INDEX).at;
	memset(d->msi, 0xff, sizeof(d->msi));
}

void device_close(struct device *d)
{
	close(d->fd);
	close(d->group);
	close(d->container);
	munmap(d->ram, RAM_SIZE);
	for (int v = 0; v < 4; v++)
		if (d->msi[v] >= 0)
			close(d->msi[v]);
}

void reset(struct device *d)
{
	must(ioctl(d->fd, VFIO_DEVICE_RESET), "RESET");
}

static void transfer(ssize_t done, size_t size, const char *what, unsigned int reg)
{
	if (done != (ssize_t)size)
		die("%s of register %#x: %zd %s", what, reg, done, done < 0 ? strerror(errno) : "");
}

uint32_t r4(struct device *d, unsigned int reg)
{
	uint32_t value = 0;

	transfer(pread(d->fd, &value, 4, d->bar + reg), 4, "read", reg);
	return value;
}

uint64_t r8(struct device *d, unsigned int reg)
{
	uint64_t value = 0;

	transfer(pread(d->fd, &value, 8, d->bar + reg), 8, "read", reg);
	return value;
}

void w4(struct device *d, unsigned int reg, uint32_t value)
{
	transfer(pwrite(d->fd, &value, 4, d->bar + reg), 4, "write", reg);
}

void w8(struct device *d, unsigned int reg, uint64_t value)
{
	transfer(pwrite(d->fd, &value, 8, d->bar + reg), 8, "write", reg);
}

void dma_start(struct device *d, uint32_t cmd, uint32_t at, uint32_t len, uint64_t mem_or_seed)
{
	uint32_t op = cmd & 15;

	w8(d, DMA_IOVA, RAM + at);
	w4(d, DMA_LEN, len);
	if (op == READ || op == WRITE)
		w8(d, DMA_MEM, mem_or_seed);
	else
		w4(d, DMA_SEED, mem_or_seed);
	w4(d, DMA_CMD, cmd);
}

uint32_t dma(struct device *d, uint32_t cmd, uint32_t at, uint32_t len, uint64_t mem_or_seed)
{
	uint32_t status;

	dma_start(d, cmd, at, len, mem_or_seed);
	for (int i = 0; (status = r4(d, DMA_STATUS)) & BUSY; i++) {
		if (i > 20000)
			die("a command does not end: %#x, done %#llx", status, (unsigned long long)r8(d, DMA_DONE));
		usleep(500);
	}
	return status >> 8;
}

uint64_t pattern(uint32_t seed, uint32_t pass, uint64_t word)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + ((uint64_t)pass << 40) + word;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

bool has_pattern(const uint8_t *at, uint32_t len, uint32_t seed)
{
	for (uint32_t i = 0; i < len; i++) {
		uint64_t word = pattern(seed, 0, i / 8);

		if (at[i] != (uint8_t)(word >> (i % 8 * 8)))
			return false;
	}
	return true;
}

void enable_msi(struct device *d, unsigned int count)
{
	char bytes[sizeof(struct vfio_irq_set) + 16];
	struct vfio_irq_set *set = (void *)bytes;

	*set = (struct vfio_irq_set){ .argsz = sizeof(*set) + 4 * count, .index = VFIO_PCI_MSI_IRQ_INDEX, .count = count,
				      .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER };
	for (unsigned int v = 0; v < count; v++)
		if (d->msi[v] < 0)
			d->msi[v] = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	memcpy(set->data, d->msi, 4 * count);
	must(ioctl(d->fd, VFIO_DEVICE_SET_IRQS, set), "SET_IRQS");
}

unsigned int signals(int fd, int ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	uint64_t count = 0;

	if (poll(&poll_fd, 1, ms) <= 0 || read(fd, &count, 8) != 8)
		return 0;
	return count;
}

void parameter(const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/module/vfio_bringup/parameters/%s", name);
	int fd = must(open(path, O_WRONLY), path);
	must(write(fd, value, strlen(value)), path);
	close(fd);
}

static int tracking(struct device *d, uint32_t flags)
{
	struct vfio_iommu_type1_dirty_bitmap dirty = { .argsz = sizeof(dirty), .flags = flags };

	return must(ioctl(d->container, VFIO_IOMMU_DIRTY_PAGES, &dirty), "DIRTY_PAGES");
}

void container_start(struct device *d)
{
	tracking(d, VFIO_IOMMU_DIRTY_PAGES_FLAG_START);
}

void container_stop(struct device *d)
{
	tracking(d, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP);
}

unsigned int count_bits(const uint64_t *bits, unsigned int count, int *first)
{
	unsigned int set = 0;

	*first = -1;
	for (int i = count - 1; i >= 0; i--)
		if (bits[i / 64] >> (i % 64) & 1) {
			set++;
			*first = i;
		}
	return set;
}

unsigned int container_pages(struct device *d, int *first)
{
	uint64_t bitmap[4] = { 0 };
	char bytes[sizeof(struct vfio_iommu_type1_dirty_bitmap) + sizeof(struct vfio_iommu_type1_dirty_bitmap_get)] = { 0 };
	struct vfio_iommu_type1_dirty_bitmap *dirty = (void *)bytes;
	struct vfio_iommu_type1_dirty_bitmap_get *get = (void *)dirty->data;

	dirty->argsz = sizeof(bytes);
	dirty->flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
	*get = (struct vfio_iommu_type1_dirty_bitmap_get){ .iova = RAM, .size = RAM_SIZE,
							   .bitmap = { .pgsize = PAGE, .size = 32, .data = (void *)bitmap } };
	must(ioctl(d->container, VFIO_IOMMU_DIRTY_PAGES, dirty), "GET_BITMAP");
	return count_bits(bitmap, 256, first);
}
