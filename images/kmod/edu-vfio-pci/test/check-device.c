// SPDX-License-Identifier: GPL-2.0-only
// What of the device has to survive a save and a load, and what neither may touch. See check.c.
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

/* a. A transfer in flight counts as dirty from its command on, through every report, until it was seen to have ended. */
void rule_log(struct edu *edu)
{
	unsigned int count;
	int first;

	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), EINVAL);
	SAME(log_stop(edu), 0);
	fill(edu->ram, 4096, 1);
	dma(edu, 0, 0, 4000, 0);
	/* Ended before the start: not reported. */
	dma(edu, 0x3000, 0, 100, CMD_TO_RAM);
	SAME(log_start(edu, RAM, RAM_SIZE), 0);
	SAME(log_start(edu, RAM, RAM_SIZE), EBUSY);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 0);
	SAME(log_stop(edu), 0);

	/* In flight at the start; two reports before it lands, one after, then no more. */
	dma_start(edu, 0x5000, 0, 4000, CMD_TO_RAM);
	SAME(log_start(edu, RAM, RAM_SIZE), 0);
	for (int i = 0; i < 2; i++) {
		SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
		SAME(count, 1);
		SAME(first, 5);
	}
	TRUE(r4(edu, REG_CMD) & CMD_RUN);
	while (r4(edu, REG_CMD) & CMD_RUN)
		usleep(1000);
	/* Each part of the range has to hear of it, whoever asks first. */
	SAME(log_report(edu, RAM, 0x4000, &count, &first), 0);
	SAME(count, 0);
	SAME(log_report(edu, RAM + 0x4000, 0x4000, &count, &first), 0);
	SAME(count, 1);
	SAME(first, 1);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 0);

	/* Started while logging; across a page boundary; reading RAM is not dirtying it. */
	fill(edu->ram + 0x7000, 4088, 2);
	dma(edu, 0x7000, 0, 4088, 0);
	dma(edu, 0x8800, 0, 4088, CMD_TO_RAM);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 2);
	SAME(first, 8);
	/* Saving is no DMA of the guest. */
	save(edu);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 0);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);

	/* Quiesced with a transfer in flight: it has landed when the state is left, and the next report has it. */
	memset(edu->ram + 0xa000, 0, 4096);
	dma_start(edu, 0xa000, 0, 4000, CMD_TO_RAM);
	SAME(set_state(edu, STATE(RUNNING_P2P), NULL), 0);
	SAME(memcmp(edu->ram + 0x7000, edu->ram + 0xa000, 4000), 0);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 1);
	SAME(first, 10);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	SAME(log_stop(edu), 0);

	/* Outside of what was asked to be logged. */
	SAME(log_start(edu, RAM + 0x10000, 0x10000), 0);
	dma(edu, 0x1000, 0, 100, CMD_TO_RAM);
	dma(edu, 0x12000, 0, 100, CMD_TO_RAM);
	SAME(log_report(edu, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 1);
	SAME(first, 0x12);
	SAME(log_stop(edu), 0);
}

/* b. Saving takes the guest's DMA registers, and gives them back: a cancelled migration goes on with them. */
void rule_registers(struct edu *edu)
{
	uint8_t before[4000];

	fill(edu->ram + 0x2000, 4000, 2);
	dma(edu, 0x2000, 16, 4000, 0);
	dma(edu, 0x3000, 16, 4000, CMD_TO_RAM);
	w8(edu, REG_SRC, BUF + 16);
	w8(edu, REG_DST, 0x123456789abcdef0);
	w8(edu, REG_CNT, 77);
	w4(edu, REG_LIVE, 0xcafe);
	memcpy(before, edu->ram + 0x3000, 4000);
	for (int i = 0; i < 3; i++) {
		save(edu);
		SAME(set_state(edu, i == 1 ? STATE(STOP) : STATE(RUNNING), NULL), 0);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
		SAME(r8(edu, REG_SRC), BUF + 16);
		SAME(r8(edu, REG_DST), 0x123456789abcdef0);
		SAME(r8(edu, REG_CNT), 77);
		SAME(r4(edu, REG_CMD), CMD_TO_RAM);
		SAME(r4(edu, REG_LIVE), ~0xcafeu);
	}
	SAME(memcmp(before, edu->ram + 0x3000, 4000), 0);
	dma(edu, 0x4000, 16, 4000, CMD_TO_RAM);
	SAME(memcmp(before, edu->ram + 0x4000, 4000), 0);

	/* And all of it comes back into a device that was reset. */
	size_t size = save(edu);
	w8(edu, REG_DST, 0);
	reset(edu);
	SAME(r8(edu, REG_CNT), 0);
	SAME(load(edu, size), 0);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	SAME(r8(edu, REG_SRC), BUF + 16);
	SAME(r8(edu, REG_CNT), 4000);
	SAME(r4(edu, REG_CMD), CMD_TO_RAM);
	SAME(r4(edu, REG_LIVE), ~0xcafeu);
	memset(edu->ram + 0x5000, 0, 4096);
	dma(edu, 0x5000, 16, 4000, CMD_TO_RAM);
	SAME(memcmp(before, edu->ram + 0x5000, 4000), 0);
}

/* c. The factorial is computed again, and its interrupt is not. */
void rule_factorial(struct edu *edu)
{
	static const uint32_t operands[] = { 0, 1, 5, 12, 13, 33, 34, 4000000000u };
	static const uint32_t results[] = { 1, 1, 120, 479001600, 1932053504, 0x80000000u, 0, 0 };

	move(edu);
	SAME(r4(edu, REG_FACT), 0);
	for (unsigned int i = 0; i < 8; i++) {
		w4(edu, REG_STATUS, i & 1 ? 0x80 : 0);
		factorial(edu, operands[i]);
		SAME(r4(edu, REG_FACT), results[i]);
		if (i & 1) {
			for (int n = 0; !(r4(edu, REG_IRQ) & 1) && n < 2000; n++)
				usleep(1000);
			SAME(r4(edu, REG_IRQ), 1);
			w4(edu, REG_ACK, 1);
		}
		move(edu);
		SAME(r4(edu, REG_FACT), results[i]);
		SAME(r4(edu, REG_STATUS), i & 1 ? 0x80 : 0);
		usleep(20000);
		SAME(r4(edu, REG_IRQ), 0);
	}
}

/* c. An interrupt that is pending stays so: INTx is asserted again, an MSI that was sent is not sent twice, none gets lost. */
void rule_intx(struct edu *edu)
{
	enable_intx(edu);
	SAME(signals(edu->intx, 100), 0);
	w4(edu, REG_RAISE, 0x30);
	SAME(signals(edu->intx, 2000), 1);
	/* Masked by vfio until it is unmasked: the level is still there then. */
	unmask_intx(edu);
	SAME(signals(edu->intx, 2000), 1);
	move(edu);
	SAME(r4(edu, REG_IRQ), 0x30);
	unmask_intx(edu);
	SAME(signals(edu->intx, 2000), 1);
	w4(edu, REG_ACK, 0x30);
	unmask_intx(edu);
	SAME(signals(edu->intx, 200), 0);
	move(edu);
	SAME(r4(edu, REG_IRQ), 0);
	SAME(signals(edu->intx, 200), 0);
	/* A factorial that is on its way at the stop. */
	for (int i = 0; i < 5; i++) {
		w4(edu, REG_STATUS, 0x80);
		w4(edu, REG_FACT, 20);
		move(edu);
		SAME(r4(edu, REG_IRQ), 1);
		w4(edu, REG_ACK, 1);
		signals(edu->intx, 100);
		unmask_intx(edu);
		SAME(signals(edu->intx, 100), 0);
	}
}

void rule_msi(struct edu *edu)
{
	enable_msi(edu);
	w4(edu, REG_RAISE, 0x30);
	SAME(signals(edu->msi, 2000), 1);
	move(edu);
	SAME(r4(edu, REG_IRQ), 0x30);
	SAME(signals(edu->msi, 300), 0);
	w4(edu, REG_RAISE, 0x40);
	SAME(signals(edu->msi, 2000), 1);
	SAME(r4(edu, REG_IRQ), 0x70);
	w4(edu, REG_ACK, 0x70);
	/* Of a transfer in flight at the stop: once, before the device has stopped. */
	dma_start(edu, 0, 0, 64, CMD_IRQ);
	SAME(set_state(edu, STATE(STOP), NULL), 0);
	SAME(signals(edu->msi, 100), 1);
	SAME(r4(edu, REG_IRQ), 0x100);
	move(edu);
	SAME(signals(edu->msi, 300), 0);
	SAME(r4(edu, REG_IRQ), 0x100);
}

/* d. Bus mastering may be off, memory decode must be on, and PCI_COMMAND is as it was afterwards. */
void rule_command(struct edu *edu)
{
	size_t size;
	int fd;

	fill(edu->ram, 4096, 3);
	dma(edu, 0, 0, 4000, 0);
	for (uint16_t value = 2; value <= 6; value += 4) {
		set_command(edu, value);
		size = save(edu);
		SAME(command(edu) & 7, value);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
		reset(edu);
		SAME(command(edu) & 7, value);
		SAME(load(edu, size), 0);
		SAME(command(edu) & 7, value);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	}
	memset(edu->ram + 0x1000, 0, 4096);
	dma(edu, 0x1000, 0, 4000, CMD_TO_RAM);
	SAME(memcmp(edu->ram, edu->ram + 0x1000, 4000), 0);

	/* A transfer of the guest with bus mastering off must not begin to work because we save. */
	set_command(edu, 4);
	SAME(set_state(edu, STATE(STOP_COPY), &fd), EIO);
	SAME(get_state(edu), STATE(RUNNING));
	SAME(command(edu) & 7, 4);
	set_command(edu, 6);
	size = save(edu);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	/* Loading that fails after it began: ERROR, which a reset leaves, with decode off too. */
	SAME(set_state(edu, STATE(RESUMING), &fd), 0);
	SAME(write_all(fd, data, size), 0);
	set_command(edu, 4);
	SAME(set_state(edu, STATE(RUNNING), NULL), EIO);
	SAME(get_state(edu), STATE(ERROR));
	SAME(write_all(fd, data, 4), ENODEV);
	close(fd);
	SAME(set_state(edu, STATE(RUNNING), NULL), EINVAL);
	SAME(set_state(edu, STATE(STOP), NULL), EINVAL);
	reset(edu);
	SAME(get_state(edu), STATE(RUNNING));
	SAME(command(edu) & 7, 4);
	set_command(edu, 6);
	SAME(r4(edu, REG_ID), 0x010000ed);
}

/* e. The device's state goes through an address that the user has not mapped: his memory is untouched, wherever it is. */
void rule_scratch(struct edu *edu)
{
	/* The last pages before the old constants, and high ones; the lab's IOMMU reaches 39 bits. */
	static const uint64_t places[] = { 0xfd000000, 0xfffff000, 0x4000000000, 0x7ffffff000 };
	uint8_t *pages = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t copy[4 * 4096];
	size_t size = 0;

	fill(pages, sizeof(copy), 4);
	memcpy(copy, pages, sizeof(copy));
	for (int i = 0; i < 4; i++)
		SAME(edu_map(edu, places[i], 4096, pages + i * 4096), 0);
	fill(edu->ram, RAM_SIZE, 5);
	uint8_t *before = malloc(RAM_SIZE);
	memcpy(before, edu->ram, RAM_SIZE);
	for (int i = 0; i < 4; i++) {
		size = save(edu);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
		SAME(load(edu, size), 0);
		SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	}
	SAME(memcmp(before, edu->ram, RAM_SIZE), 0);
	SAME(memcmp(copy, pages, sizeof(copy)), 0);
}

/* e. With a reach of 28 bits (module parameter) that is mapped up to its end there is no such address: refused, nothing touched. */
void rule_scratch_full(struct edu *edu)
{
	size_t size = (256 << 20) - RAM - RAM_SIZE;
	uint8_t *all = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd;

	SAME(edu_map(edu, RAM + RAM_SIZE, size, all), 0);
	w8(edu, REG_DST, 0x1234);
	SAME(set_state(edu, STATE(STOP_COPY), &fd), ENOSPC);
	SAME(get_state(edu), STATE(STOP));
	for (size_t i = 0; i < size; i += 4096)
		SAME(all[i], 0);
	SAME(set_state(edu, STATE(RUNNING), NULL), 0);
	SAME(r8(edu, REG_DST), 0x1234);
}

