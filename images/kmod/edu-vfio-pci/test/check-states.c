// SPDX-License-Identifier: GPL-2.0-only
// Reset, the buffer's ends, the migration data, the states and BAR0. See check.c.
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* f. There is a reset, it says so, and it makes all as after power-on. */
void rule_reset(struct edu *edu)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	SAME(ioctl(edu->fd, VFIO_DEVICE_GET_INFO, &info), 0);
	TRUE(info.flags & VFIO_DEVICE_FLAGS_RESET);
	fill(edu->ram, 4096, 6);
	dma(edu, 0, 0, 4095, 0);
	w4(edu, REG_STATUS, 0x80);
	factorial(edu, 6);
	w4(edu, REG_RAISE, 0x22);
	w4(edu, REG_LIVE, 1);
	set_command(edu, 2);
	/* With a transfer in flight, and saving: the data fd is dead afterwards. */
	int fd, error;
	SAME(set_state(edu, STATE(PRE_COPY), &fd), 0);
	w4(edu, REG_CMD, CMD_RUN | CMD_IRQ);
	reset(edu);
	SAME(get_state(edu), STATE(RUNNING));
	SAME(read_all(fd, data, sizeof(data), &error), 0);
	SAME(error, ENODEV);
	close(fd);
	SAME(command(edu) & 7, 2);
	set_command(edu, 6);
	SAME(r4(edu, REG_FACT), 0);
	SAME(r4(edu, REG_STATUS), 0);
	SAME(r4(edu, REG_IRQ), 0);
	SAME(r4(edu, REG_LIVE), 0);
	SAME(r8(edu, REG_SRC) | r8(edu, REG_DST) | r8(edu, REG_CNT) | r8(edu, REG_CMD), 0);
	memset(edu->ram, 0xff, 4096);
	dma(edu, 0, 0, 4095, CMD_TO_RAM);
	for (int i = 0; i < 4095; i++)
		SAME(edu->ram[i], 0);
	SAME(edu->ram[4095], 0xff);
}

/* f. The next user finds nothing of this one: leaves a mark (with a transfer in flight), which rule_clean does not find. */
void rule_mark(struct edu *edu)
{
	fill(edu->ram, 4096, 7);
	dma(edu, 0, 0, 4088, 0);
	w4(edu, REG_RAISE, 1);
	dma_start(edu, 0, 0, 4088, 0);
}

void rule_clean(struct edu *edu)
{
	SAME(r4(edu, REG_IRQ), 0);
	SAME(r8(edu, REG_SRC), 0);
	memset(edu->ram, 0xff, 4096);
	dma(edu, 0, 0, 4095, CMD_TO_RAM);
	for (int i = 0; i < 4095; i++)
		SAME(edu->ram[i], 0);
}

/* g. All the bytes that can be reached are moved, in transfers of at most 4088; what would abort QEMU does not reach the device. */
void rule_ranges(struct edu *edu)
{
	static const struct { uint64_t inner, cnt; } bad[] = {
		{ BUF, 4096 }, { BUF + 4095, 1 }, { BUF + 1, 4095 }, { BUF, 0 }, { BUF - 1, 2 }, { 0, 16 }, { BUF + 4096, 1 },
		{ BUF, 1ull << 32 }, { ~0ull, 2 }, { BUF + 8, ~0ull }, { ~0ull - 7, BUF + 16 },
	};

	fill(edu->ram, 4096, 8);
	dma(edu, 0, 0, 4095, 0);
	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad) * 2; i++) {
		uint32_t cmd = i & 1 ? CMD_TO_RAM : 0;

		w8(edu, cmd ? REG_SRC : REG_DST, bad[i / 2].inner);
		w8(edu, cmd ? REG_DST : REG_SRC, RAM + 0x1000);
		w8(edu, REG_CNT, bad[i / 2].cnt);
		w4(edu, REG_CMD, cmd | CMD_RUN);
		SAME(r4(edu, REG_CMD) & CMD_RUN, 0);
	}
	move(edu);
	memset(edu->ram + 0x1000, 0, 4096);
	dma(edu, 0x1000, 0, 4095, CMD_TO_RAM);
	SAME(memcmp(edu->ram, edu->ram + 0x1000, 4095), 0);
	/* Loaded over a device with a used tail by one without. */
	reset(edu);
	dma(edu, 0x2000, 0, 100, 0);
	size_t size = save(edu);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	dma(edu, 0, 0, 4095, 0);
	SAME(load(edu, size), 0);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	memset(edu->ram + 0x3000, 0xff, 4096);
	dma(edu, 0x3000, 0, 4095, CMD_TO_RAM);
	for (int i = 100; i < 4095; i++)
		SAME(edu->ram[0x3000 + i], 0);
}

/* h. PRE_COPY has an initial part, then deltas of the registers; nothing is left of the first before the switch-over. */
void rule_precopy(struct edu *edu)
{
	uint64_t initial, dirty, first_initial, whole = data_size(edu);
	struct pollfd poll_fd = { .events = POLLIN };
	size_t size, more;
	int fd, error, other;

	fill(edu->ram, 4096, 9);
	dma(edu, 0, 0, 4088, 0);
	SAME(set_state(edu, STATE(PRE_COPY), &fd), 0);
	TRUE(fd >= 0);
	SAME(precopy_info(fd, &first_initial, &dirty), 0);
	TRUE(first_initial >= 24);
	SAME(dirty, 0);
	SAME(read(fd, data, 10), 10);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(initial, first_initial - 10);
	size = 10 + read_all(fd, data + 10, sizeof(data) - 10, &error);
	SAME(error, ENOMSG);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(initial + dirty, 0);
	TRUE(data_size(edu) < whole && data_size(edu) >= 4096);
	/* What the guest does shows. */
	w8(edu, REG_CNT, 5);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(initial, 0);
	TRUE(dirty > 0);
	more = read_all(fd, data + size, sizeof(data) - size, &error);
	SAME(more, dirty);
	SAME(error, ENOMSG);
	size += more;
	poll_fd.fd = fd;
	SAME(poll(&poll_fd, 1, 0), 0);
	w8(edu, REG_CNT, 6);
	SAME(set_state(edu, STATE(PRE_COPY_P2P), &other), 0);
	SAME(other, -1);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(set_state(edu, STATE(STOP_COPY), &other), 0);
	SAME(other, -1);
	SAME(poll(&poll_fd, 1, 1000), 1);
	SAME(precopy_info(fd, &initial, &dirty), EINVAL);
	uint64_t left = data_size(edu);
	more = read_all(fd, data + size, sizeof(data) - size, &error);
	SAME(error, 0);
	TRUE(more >= 4096 && more <= left);
	size += more;
	SAME(data_size(edu), 0);
	SAME(set_state(edu, STATE(STOP), NULL), 0);
	SAME(read_all(fd, data + size, 10, &error), 0);
	SAME(error, ENODEV);
	close(fd);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	reset(edu);
	SAME(load(edu, size), 0);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	SAME(r8(edu, REG_CNT), 6);
	dma(edu, 0x1000, 0, 4088, CMD_TO_RAM);
	SAME(memcmp(edu->ram, edu->ram + 0x1000, 4088), 0);

	/* Cancelled in each of them, the device goes on. */
	static const uint32_t states[] = { STATE(PRE_COPY), STATE(PRE_COPY_P2P), STATE(STOP_COPY), STATE(STOP) };
	for (int i = 0; i < 4; i++) {
		SAME(set_state(edu, STATE(PRE_COPY), &fd), 0);
		SAME(set_state(edu, states[i], NULL), 0);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
		SAME(read_all(fd, data, 10, &error), 0);
		SAME(error, ENODEV);
		close(fd);
		dma(edu, 0x2000 + i * 4096, 0, 4088, CMD_TO_RAM);
		SAME(memcmp(edu->ram, edu->ram + 0x2000 + i * 4096, 4088), 0);
	}
}

/* h. What does not fit is refused by the write itself, while the guest would still run. */
void rule_identity(struct edu *edu)
{
	size_t size = save(edu);

	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	/* Header (8 bytes), magic, version, device, buffer size, DMA mask. */
	for (unsigned int at = 8; at < 32; at += 4) {
		int fd;

		data[at] ^= 1;
		SAME(set_state(edu, STATE(RESUMING), &fd), 0);
		SAME(write_all(fd, data, 32), EINVAL);
		SAME(write_all(fd, data, 1), EINVAL);
		close(fd);
		SAME(get_state(edu), STATE(RESUMING));
		SAME(set_state(edu, STATE(RUNNING), NULL), EINVAL);
		reset(edu);
		SAME(get_state(edu), STATE(RUNNING));
		data[at] ^= 1;
	}
	SAME(load(edu, size), 0);
}

/* Writes the whole data to a file, or loads it from one: for two loadings of the module. */
void rule_write(struct edu *edu)
{
	size_t size = save(edu);
	int file = open("/tmp/edu-data", O_CREAT | O_TRUNC | O_WRONLY, 0600);

	SAME(write(file, data, size), size);
	close(file);
}

void rule_other_mask(struct edu *edu)
{
	int file = open("/tmp/edu-data", O_RDONLY);
	int fd;

	TRUE(read(file, data, sizeof(data)) > 4096);
	SAME(set_state(edu, STATE(RESUMING), &fd), 0);
	SAME(write_all(fd, data, 31), 0);
	SAME(write_all(fd, data + 31, 1), EINVAL);
}

/* Short data, data with any bit wrong, and more than there is: leaving RESUMING fails, the state stays, a reset helps. */
void rule_refusals(struct edu *edu)
{
	size_t size = save(edu);
	uint8_t good[8192];
	size_t cuts[] = { 0, 4, 31, 32, 40, 80, size - 1 };
	int fd;

	memcpy(good, data, size);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	for (unsigned int i = 0; i < sizeof(cuts) / sizeof(*cuts); i++) {
		SAME(load(edu, cuts[i]), EINVAL);
		SAME(get_state(edu), STATE(RESUMING));
		SAME(set_state(edu, STATE(RUNNING), NULL), EINVAL);
		SAME(set_state(edu, STATE(PRE_COPY), NULL), EINVAL);
		reset(edu);
	}
	srand(1);
	for (int i = 0; i < 200; i++) {
		memcpy(data, good, size);
		/* Some in the records' heads and the registers, most anywhere. */
		data[i < 100 ? (size_t)i : rand() % size] ^= 1 << rand() % 8;
		SAME(load(edu, size), EINVAL);
		reset(edu);
	}
	for (int i = 0; i < 100; i++) {
		for (size_t at = 0; at < 200; at++)
			data[at] = rand();
		SAME(load(edu, 200), EINVAL);
		reset(edu);
	}
	memcpy(data, good, size);
	SAME(set_state(edu, STATE(RESUMING), &fd), 0);
	SAME(write_all(fd, data, size), 0);
	/* Not a byte more. */
	SAME(write_all(fd, data, 1), EINVAL);
	close(fd);
	SAME(set_state(edu, STATE(RUNNING), NULL), EINVAL);
	reset(edu);
}

/* Every arc that the kernel's table does not have is EINVAL and changes nothing; every other one works. */
void rule_arcs(struct edu *edu)
{
	struct vfio_device_feature_migration mig = { 0 };
	uint64_t bytes[8] = { 0 };
	struct vfio_device_feature *f = (void *)bytes;

	f->argsz = sizeof(*f) + sizeof(mig);
	f->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION;
	SAME(ioctl(edu->fd, VFIO_DEVICE_FEATURE, f), 0);
	memcpy(&mig, f->data, sizeof(mig));
	SAME(mig.flags, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY);
	for (uint32_t from = 1; from <= 7; from++) {
		for (uint32_t to = 0; to <= 9; to++) {
			bool saves = from == STATE(STOP_COPY);
			bool bad = to == 0 || to > 7 || (from == STATE(RESUMING) && to != from) ||
				   (saves && (to == STATE(PRE_COPY) || to == STATE(PRE_COPY_P2P)));

			SAME(set_state(edu, from, NULL), 0);
			SAME(set_state(edu, to, NULL), bad ? EINVAL : 0);
			SAME(get_state(edu), bad ? from : to);
			if (get_state(edu) == STATE(RESUMING) || get_state(edu) == STATE(ERROR))
				reset(edu);
			else
				SAME(set_state(edu, STATE(RUNNING), NULL), 0);
		}
	}
}

/* The registers' page is trapped, the rest of BAR0 may be mapped; odd accesses end well. */
void rule_bar(struct edu *edu)
{
	uint64_t bytes[16] = { 0 };
	struct vfio_region_info *info = (void *)bytes;
	struct vfio_region_info_cap_sparse_mmap *cap;
	uint8_t odd[4200];

	info->argsz = sizeof(*info);
	SAME(ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, info), 0);
	TRUE(info->argsz > sizeof(*info) && info->size == 1 << 20);
	SAME(ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, info), 0);
	SAME(info->flags, 15);
	cap = (void *)((char *)bytes + info->cap_offset);
	SAME(cap->header.id, VFIO_REGION_INFO_CAP_SPARSE_MMAP);
	SAME(cap->nr_areas, 1);
	SAME(cap->areas[0].offset, 4096);
	SAME(cap->areas[0].size, (1 << 20) - 4096);
	TRUE(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd, info->offset) == MAP_FAILED);
	TRUE(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd, info->offset) == MAP_FAILED);
	volatile uint32_t *rest = mmap(NULL, (1 << 20) - 4096, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd, info->offset + 4096);
	TRUE(rest != MAP_FAILED);
	rest[0] = 1;
	SAME(rest[0], 0xffffffff);

	for (size_t size = 1; size <= 9; size++)
		for (unsigned int at = 0; at <= 9; at++)
			SAME(pread(edu->fd, odd, size, edu->bar + at), size);
	/* Cut where the registers end. */
	SAME(pread(edu->fd, odd, 16, edu->bar + 4090), 6);
	memset(odd, 0xee, sizeof(odd));
	SAME(pwrite(edu->fd, odd, 3, edu->bar + REG_SRC), 3);
	SAME(r8(edu, REG_SRC), 0);
	/* Two registers in one access. */
	SAME(pwrite(edu->fd, odd, 16, edu->bar + REG_SRC), 16);
	SAME(r8(edu, REG_SRC), 0xeeeeeeeeeeeeeeee);
	SAME(r8(edu, REG_DST), 0xeeeeeeeeeeeeeeee);
	/* 4 bytes are the whole register, as in the device. */
	w4(edu, REG_DST, 0x55);
	SAME(r8(edu, REG_DST), 0x55);
	volatile uintptr_t nowhere = 8;
	SAME(pread(edu->fd, (void *)nowhere, 8, edu->bar), -1);
	SAME(errno, EFAULT);
}

/* A stopped device starts nothing, whoever asks. How long the steps take is printed. */
void rule_stopped(struct edu *edu)
{
	uint32_t value = CMD_RUN;
	double t = now_ms();

	SAME(set_state(edu, STATE(STOP), NULL), 0);
	printf("stop %.1f ms\n", now_ms() - t);
	SAME(pwrite(edu->fd, &value, 4, edu->bar + REG_CMD), -1);
	SAME(errno, EBUSY);
	SAME(pwrite(edu->fd, &value, 4, edu->bar + REG_FACT), -1);
	SAME(errno, EBUSY);
	SAME(r4(edu, REG_ID), 0x010000ed);
	t = now_ms();
	size_t size = save(edu);
	printf("save %.1f ms\n", now_ms() - t);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	t = now_ms();
	SAME(load(edu, size), 0);
	printf("load %.1f ms, %zu bytes\n", now_ms() - t, size);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	dma(edu, 0, 0, 16, 0);
}

