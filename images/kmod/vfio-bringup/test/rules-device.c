// SPDX-License-Identifier: GPL-2.0-only
// The device itself, the same for all generations. See check.c.
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static uint32_t config(struct device *d, unsigned int at, unsigned int size)
{
	uint32_t value = 0;

	SAME(pread(d->fd, &value, size, d->config + at), size);
	return value;
}

static void set_config(struct device *d, unsigned int at, unsigned int size, uint32_t value)
{
	SAME(pwrite(d->fd, &value, size, d->config + at), size);
}

static void rule_config(struct device *d, struct device *other)
{
	(void)other;
	SAME(config(d, 0, 4), 0xfe011234);
	SAME(config(d, 8, 4), 0xff000001);
	/* PCI 3.0, 6.2.5.1: all ones, and what reads as 0 is the size. */
	set_config(d, 0x10, 4, ~0u);
	SAME(config(d, 0x10, 4), 0xffff0000);
	set_config(d, 0x18, 4, ~0u);
	SAME(config(d, 0x18, 4), 0xfffff000);
	set_config(d, 0x14, 4, ~0u);
	SAME(config(d, 0x14, 4), 0);
	set_config(d, 0x04, 2, 0xffff);
	SAME(config(d, 0x04, 2), 0x0406);
	SAME(config(d, 0x06, 2), 0x10);
	SAME(config(d, config(d, 0x34, 1), 4), 0x00840005);
	set_config(d, 0x00, 4, 0);
	SAME(config(d, 0x00, 4), 0xfe011234);
	reset(d);
	SAME(config(d, 0x10, 4), 0xffff0000);
}

static void rule_bar(struct device *d, struct device *other)
{
	uint8_t bytes[PAGE], back[PAGE];
	uint64_t size = r8(d, MEMORY_SIZE);

	(void)other;
	SAME(r4(d, ID), 0x31554246);
	SAME(r4(d, VERSION), 1);
	SAME(size, 1 << 20);
	w8(d, SCRATCH, 0x1122334455667788);
	w4(d, SCRATCH + 4, 0x99aabbcc);
	SAME(r8(d, SCRATCH), 0x99aabbcc55667788);
	SAME(pread(d->fd, bytes, 3, d->bar + SCRATCH + 1), 3);
	SAME(bytes[0] | bytes[1] << 8 | bytes[2] << 16, 0x556677);
	w8(d, WINDOW, size - PAGE);
	memset(bytes, 0xa5, sizeof(bytes));
	SAME(pwrite(d->fd, bytes, sizeof(bytes), d->bar + MEMORY), PAGE);
	w8(d, WINDOW, size - 2 * PAGE);
	SAME(pread(d->fd, back, PAGE, d->bar + MEMORY + PAGE), PAGE);
	SAME(memcmp(bytes, back, PAGE), 0);
	SAME(pread(d->fd, back, PAGE, d->bar + MEMORY + 2 * PAGE), PAGE);
	SAME(back[0] | back[PAGE - 1], 0);
	/* The mailbox, and the same by a mapping. */
	uint8_t *map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, d->bar2);
	TRUE(map != MAP_FAILED);
	map[7] = 9;
	SAME(pread(d->fd, bytes, 8, d->bar2), 8);
	SAME(bytes[7], 9);
	munmap(map, PAGE);
	TRUE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, d->fd, d->bar) == MAP_FAILED);
	uint64_t hash = r8(d, HASH);
	SAME(r8(d, HASH), hash);
	w4(d, MUTATE, 5);
	TRUE(r8(d, HASH) != hash);
	SAME(r8(d, SEQUENCE), 1);
}

static void rule_dma(struct device *d, struct device *other)
{
	uint8_t back[64];

	(void)other;
	memset(d->ram, 0, RAM_SIZE);
	SAME(dma(d, FILL, 0x1003, 0x2345, 42), 0);
	TRUE(has_pattern(d->ram + 0x1003, 0x2345, 42));
	SAME(d->ram[0x1002] | d->ram[0x1003 + 0x2345], 0);
	SAME(dma(d, CHECK, 0x1003, 0x2345, 42), 0);
	SAME(r4(d, DMA_ERRORS), 0);
	d->ram[0x1803] ^= 1;
	SAME(dma(d, CHECK, 0x1003, 0x2345, 42), 0);
	SAME(r4(d, DMA_ERRORS), 1);
	/* RAM to device memory and back elsewhere. */
	SAME(dma(d, READ, 0x1003, 0x2345, 0x7007), 0);
	SAME(dma(d, WRITE, 0x8001, 0x2345, 0x7007), 0);
	SAME(memcmp(d->ram + 0x1003, d->ram + 0x8001, 0x2345), 0);
	w8(d, WINDOW, 0x7000);
	SAME(pread(d->fd, back, 64, d->bar + MEMORY + 7), 64);
	SAME(memcmp(back, d->ram + 0x1003, 64), 0);
	/* Bad commands. */
	SAME(dma(d, 7, 0, 8, 0), 1);
	SAME(dma(d, FILL, 0, 0, 0), 1);
	SAME(dma(d, READ, 0, 2, (1 << 20) - 1), 2);
	SAME(dma(d, FILL, RAM_SIZE - 4, 8, 0), 3);
	SAME(r8(d, DMA_DONE), 4);
	SAME(r4(d, DMA_COUNT), 9);
	SAME(r8(d, SEQUENCE), 9);
	/* One that goes on until it is told to end. */
	dma_start(d, FILL | REPEAT, 0, PAGE, 1);
	usleep(20000);
	SAME(r4(d, DMA_STATUS), BUSY);
	TRUE(r4(d, DMA_PASS) > 2);
	w8(d, DMA_IOVA, 0);
	SAME(r8(d, DMA_IOVA), RAM);
	w4(d, DMA_CMD, 0);
	for (int i = 0; r4(d, DMA_STATUS) & BUSY; i++)
		TRUE(i < 1000 && !usleep(1000));
	uint32_t pass = r4(d, DMA_PASS);
	usleep(20000);
	SAME(r4(d, DMA_PASS), pass);
}

static void rule_msi(struct device *d, struct device *other)
{
	(void)other;
	/* Raised while nobody listens: pending until somebody does, once. */
	w4(d, IRQ_RAISE, 5);
	w4(d, IRQ_RAISE, 1);
	SAME(r4(d, IRQ_PENDING), 5);
	enable_msi(d, 4);
	SAME(signals(d->msi[0], 0), 1);
	SAME(signals(d->msi[2], 0), 1);
	SAME(r4(d, IRQ_PENDING), 0);
	SAME(r4(d, IRQ_COUNT), 1);
	for (int i = 0; i < 100; i++)
		SAME(dma(d, FILL | IRQ | 3 << 8, 0, 64, i), 0);
	SAME(signals(d->msi[3], 0), 100);
	SAME(r4(d, IRQ_COUNT + 12), 100);
	SAME(signals(d->msi[1], 0), 0);
	/* By the user, as a loopback. */
	struct vfio_irq_set set = { .argsz = sizeof(set), .index = VFIO_PCI_MSI_IRQ_INDEX, .start = 1, .count = 1,
				    .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER };
	SAME(ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &set), 0);
	SAME(signals(d->msi[1], 0), 1);
	set.start = set.count = 0;
	SAME(ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &set), 0);
	w4(d, IRQ_RAISE, 2);
	SAME(signals(d->msi[1], 0), 0);
	SAME(r4(d, IRQ_PENDING), 2);
	set.index = VFIO_PCI_INTX_IRQ_INDEX;
	set.count = 1;
	SAME(ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &set), -1);
	SAME(errno, EINVAL);
}

static void rule_reset(struct device *d, struct device *other)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	(void)other;
	uint64_t hash = r8(d, HASH);
	SAME(ioctl(d->fd, VFIO_DEVICE_GET_INFO, &info), 0);
	TRUE(info.flags & VFIO_DEVICE_FLAGS_RESET);
	work(d, 77);
	TRUE(r8(d, HASH) != hash);
	reset(d);
	SAME(r8(d, HASH), hash);
	SAME(r4(d, DMA_STATUS), 0);
	SAME(r8(d, RNG), 0x9e3779b97f4a7c15);
	SAME(dma(d, FILL, 0, 8, 1), 0);
	/* For rule_clean. */
	work(d, 78);
}

/* The next user finds nothing of this one. */
static void rule_clean(struct device *d, struct device *other)
{
	(void)other;
	uint64_t hash = r8(d, HASH);
	SAME(r8(d, SEQUENCE), 0);
	reset(d);
	SAME(r8(d, HASH), hash);
}

/* type1 sees each page that vfio_dma_rw() writes, and no other. */
static void rule_container(struct device *d, struct device *other)
{
	int first;

	(void)other;
	container_start(d);
	SAME(container_pages(d, &first), 0);
	SAME(dma(d, FILL, 0x5ffc, 8, 1), 0);
	SAME(container_pages(d, &first), 2);
	SAME(first, 5);
	SAME(dma(d, CHECK, 0x9000, PAGE, 1), 0);
	SAME(container_pages(d, &first), 0);
	container_stop(d);
}

const struct rule rules_device[] = {
	{ "config", rule_config }, { "bar", rule_bar }, { "dma", rule_dma }, { "msi", rule_msi }, { "reset", rule_reset },
	{ "clean", rule_clean }, { "container", rule_container }, { NULL, NULL },
};
