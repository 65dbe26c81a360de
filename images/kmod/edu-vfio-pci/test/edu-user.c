// SPDX-License-Identifier: GPL-2.0-only
// See edu-user.h.
#define _GNU_SOURCE
#include "edu-user.h"
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

static int must(int result, const char *what)
{
	if (result < 0)
		die("%s: %s", what, strerror(errno));
	return result;
}

static uint64_t region_offset(struct edu *edu, uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	must(ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &info), "region info");
	return info.offset;
}

int edu_map(struct edu *edu, uint64_t iova, size_t size, void *at)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
						.vaddr = (uintptr_t)at, .iova = iova, .size = size };

	return ioctl(edu->container, VFIO_IOMMU_MAP_DMA, &map) < 0 ? errno : 0;
}

void edu_open(struct edu *edu, const char *group, const char *bdf)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	edu->intx = edu->msi = -1;
	edu->container = must(open("/dev/vfio/vfio", O_RDWR), "container");
	edu->group = must(open(path, O_RDWR), path);
	must(ioctl(edu->group, VFIO_GROUP_SET_CONTAINER, &edu->container), "SET_CONTAINER");
	must(ioctl(edu->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "SET_IOMMU");
	edu->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (edu_map(edu, RAM, RAM_SIZE, edu->ram))
		die("MAP_DMA: %s", strerror(errno));
	edu->fd = must(ioctl(edu->group, VFIO_GROUP_GET_DEVICE_FD, bdf), "GET_DEVICE_FD");
	edu->bar = region_offset(edu, VFIO_PCI_BAR0_REGION_INDEX);
	edu->config = region_offset(edu, VFIO_PCI_CONFIG_REGION_INDEX);
	set_command(edu, 6);
}

void edu_close(struct edu *edu)
{
	close(edu->fd);
	close(edu->group);
	close(edu->container);
	munmap(edu->ram, RAM_SIZE);
	if (edu->intx >= 0)
		close(edu->intx);
	if (edu->msi >= 0)
		close(edu->msi);
}

static void transfer(ssize_t done, size_t size, const char *what, unsigned int reg)
{
	if (done != (ssize_t)size)
		die("%s of register %#x: %zd %s", what, reg, done, done < 0 ? strerror(errno) : "");
}

uint32_t r4(struct edu *edu, unsigned int reg)
{
	uint32_t value = 0;

	transfer(pread(edu->fd, &value, 4, edu->bar + reg), 4, "read", reg);
	return value;
}

uint64_t r8(struct edu *edu, unsigned int reg)
{
	uint64_t value = 0;

	transfer(pread(edu->fd, &value, 8, edu->bar + reg), 8, "read", reg);
	return value;
}

void w4(struct edu *edu, unsigned int reg, uint32_t value)
{
	transfer(pwrite(edu->fd, &value, 4, edu->bar + reg), 4, "write", reg);
}

void w8(struct edu *edu, unsigned int reg, uint64_t value)
{
	transfer(pwrite(edu->fd, &value, 8, edu->bar + reg), 8, "write", reg);
}

uint16_t command(struct edu *edu)
{
	uint16_t value = 0;

	transfer(pread(edu->fd, &value, 2, edu->config + 4), 2, "read", 4);
	return value;
}

void set_command(struct edu *edu, uint16_t value)
{
	transfer(pwrite(edu->fd, &value, 2, edu->config + 4), 2, "write", 4);
}

void dma_start(struct edu *edu, unsigned int at, unsigned int inner, unsigned int cnt, uint32_t cmd)
{
	w8(edu, REG_SRC, cmd & CMD_TO_RAM ? BUF + inner : RAM + at);
	w8(edu, REG_DST, cmd & CMD_TO_RAM ? RAM + at : BUF + inner);
	w8(edu, REG_CNT, cnt);
	w4(edu, REG_CMD, cmd | CMD_RUN);
}

void dma(struct edu *edu, unsigned int at, unsigned int inner, unsigned int cnt, uint32_t cmd)
{
	dma_start(edu, at, inner, cnt, cmd);
	for (int i = 0; r4(edu, REG_CMD) & CMD_RUN; i++) {
		if (i > 5000)
			die("a transfer does not end");
		usleep(1000);
	}
}

void factorial(struct edu *edu, uint32_t operand)
{
	w4(edu, REG_FACT, operand);
	for (int i = 0; r4(edu, REG_STATUS) & 1; i++) {
		if (i > 5000)
			die("a factorial does not end");
		usleep(1000);
	}
}

static int irq_eventfd(struct edu *edu, uint32_t index)
{
	char bytes[sizeof(struct vfio_irq_set) + 4];
	struct vfio_irq_set *set = (void *)bytes;
	int fd = must(eventfd(0, EFD_NONBLOCK), "eventfd");

	*set = (struct vfio_irq_set){ .argsz = sizeof(bytes), .index = index, .count = 1,
				      .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER };
	memcpy(set->data, &fd, 4);
	must(ioctl(edu->fd, VFIO_DEVICE_SET_IRQS, set), "SET_IRQS");
	return fd;
}

void enable_intx(struct edu *edu)
{
	edu->intx = irq_eventfd(edu, VFIO_PCI_INTX_IRQ_INDEX);
}

void unmask_intx(struct edu *edu)
{
	struct vfio_irq_set set = { .argsz = sizeof(set), .index = VFIO_PCI_INTX_IRQ_INDEX, .count = 1,
				    .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK };

	must(ioctl(edu->fd, VFIO_DEVICE_SET_IRQS, &set), "unmask INTx");
}

void enable_msi(struct edu *edu)
{
	edu->msi = irq_eventfd(edu, VFIO_PCI_MSI_IRQ_INDEX);
}

unsigned int signals(int fd, int ms)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	uint64_t count = 0;

	if (poll(&poll_fd, 1, ms) <= 0 || read(fd, &count, 8) != 8)
		return 0;
	return count;
}

/* The feature's structure goes in and comes out at `body`. errno, or 0. */
static int feature(struct edu *edu, uint32_t flags, void *body, size_t size)
{
	uint64_t bytes[32] = { 0 };
	struct vfio_device_feature *f = (void *)bytes;

	f->argsz = sizeof(*f) + size;
	f->flags = flags;
	memcpy(f->data, body, size);
	if (ioctl(edu->fd, VFIO_DEVICE_FEATURE, f) < 0)
		return errno;
	memcpy(body, f->data, size);
	return 0;
}

int set_state(struct edu *edu, uint32_t state, int *data_fd)
{
	struct vfio_device_feature_mig_state body = { .device_state = state, .data_fd = -1 };
	int error = feature(edu, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &body, sizeof(body));

	if (data_fd)
		*data_fd = error ? -1 : body.data_fd;
	else if (!error && body.data_fd >= 0)
		close(body.data_fd);
	return error;
}

uint32_t get_state(struct edu *edu)
{
	struct vfio_device_feature_mig_state body = { 0 };
	int error = feature(edu, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &body, sizeof(body));

	if (error)
		die("GET of the state: %s", strerror(error));
	return body.device_state;
}

uint64_t data_size(struct edu *edu)
{
	struct vfio_device_feature_mig_data_size body = { 0 };
	int error = feature(edu, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &body, sizeof(body));

	if (error)
		die("MIG_DATA_SIZE: %s", strerror(error));
	return body.stop_copy_length;
}

size_t read_all(int fd, uint8_t *into, size_t room, int *error)
{
	size_t size = 0;
	ssize_t got;

	while ((got = read(fd, into + size, room - size)) > 0)
		size += got;
	*error = got < 0 ? errno : 0;
	return size;
}

int write_all(int fd, const uint8_t *from, size_t size)
{
	/* Odd pieces, so that records come in parts. */
	while (size > 0) {
		size_t piece = size < 97 ? size : 97;
		ssize_t done = write(fd, from, piece);

		if (done < 0)
			return errno;
		from += done;
		size -= done;
	}
	return 0;
}

int precopy_info(int fd, uint64_t *initial, uint64_t *dirty)
{
	struct vfio_precopy_info info = { .argsz = sizeof(info) };

	if (ioctl(fd, VFIO_MIG_GET_PRECOPY_INFO, &info) < 0)
		return errno;
	*initial = info.initial_bytes;
	*dirty = info.dirty_bytes;
	return 0;
}

int log_start(struct edu *edu, uint64_t iova, uint64_t length)
{
	struct vfio_device_feature_dma_logging_range range = { .iova = iova, .length = length };
	struct vfio_device_feature_dma_logging_control body = { .page_size = 4096, .num_ranges = 1, .ranges = (uintptr_t)&range };

	return feature(edu, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &body, sizeof(body));
}

int log_stop(struct edu *edu)
{
	char none;

	return feature(edu, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, &none, 0);
}

int log_report(struct edu *edu, uint64_t iova, uint64_t length, unsigned int *count, int *first)
{
	uint64_t bitmap[4] = { 0 };
	struct vfio_device_feature_dma_logging_report body = { .iova = iova, .length = length, .page_size = 4096,
							       .bitmap = (uintptr_t)bitmap };
	int error = feature(edu, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &body, sizeof(body));

	*count = 0;
	*first = -1;
	for (int i = 255; i >= 0; i--)
		if (bitmap[i / 64] >> (i % 64) & 1) {
			(*count)++;
			*first = i;
		}
	return error;
}
