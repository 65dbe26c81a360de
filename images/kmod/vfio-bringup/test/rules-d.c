// SPDX-License-Identifier: GPL-2.0-only
// abi d: states, data, logging. See check.c.
#define _GNU_SOURCE
#include "check.h"
#include "v2-user.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint8_t data[4 << 20];

static size_t save(struct device *d)
{
	int fd, error;
	size_t size;

	SAME(set_state(d, STATE(STOP_COPY), &fd), 0);
	TRUE(fd >= 0);
	uint64_t announced = data_size(d);
	size = read_all(fd, data, sizeof(data), &error);
	SAME(error, 0);
	SAME(size, announced);
	SAME(data_size(d), 0);
	close(fd);
	return size;
}

/* errno of a write or of leaving RESUMING. */
static int load(struct device *d, size_t size, size_t piece)
{
	int fd, error;

	SAME(set_state(d, STATE(RESUMING), &fd), 0);
	error = write_all(fd, data, size, piece);
	close(fd);
	return error ? error : set_state(d, STATE(STOP), NULL);
}

/* Memory, registers, a command in its middle and a pending interrupt come over, and go on there. */
static void rule_move(struct device *d, struct device *other)
{
	TRUE(data_size(d) > 1 << 20);
	work(d, 3);
	usleep(50000);
	size_t size = save(d);
	uint64_t hash = r8(d, HASH), done = r8(d, DMA_DONE);
	SAME(r4(d, DMA_STATUS), BUSY);
	TRUE(done > 0 && done < 0x30000);
	SAME(load(other, size, 977), 0);
	SAME(r8(other, HASH), hash);
	usleep(50000);
	SAME(r8(other, DMA_DONE), done);
	/* The user's RAM comes by another way. */
	memcpy(other->ram, d->ram, RAM_SIZE);
	enable_msi(other, 4);
	SAME(signals(other->msi[3], 0), 0);
	SAME(set_state(other, STATE(RUNNING), NULL), 0);
	SAME(signals(other->msi[3], 0), 1);
	SAME(signals(other->msi[0], 20000), 1);
	TRUE(has_pattern(other->ram + 0x20000, 0x30000, 4));
	/* The source still stands where it stood. */
	SAME(r8(d, HASH), hash);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	/* So does one that is stopped between two commands: a shorter one is being prepared, what the last one did still stands there. */
	SAME(dma(d, FILL, 0, 0x30000, 7), 0);
	w4(d, DMA_LEN, 0x1000);
	size = save(d);
	SAME(load(other, size, 977), 0);
	SAME(r8(other, HASH), r8(d, HASH));
	SAME(set_state(other, STATE(RUNNING), NULL), 0);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
}

static void rule_precopy(struct device *d, struct device *other)
{
	uint64_t initial, dirty, before;
	int fd, same_fd, error;
	size_t size;

	w4(d, MUTATE, 1);
	SAME(set_state(d, STATE(PRE_COPY), &fd), 0);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	TRUE(initial > 1 << 20);
	SAME(dirty, 0);
	size = read_all(fd, data, sizeof(data), &error);
	SAME(error, ENOMSG);
	SAME(size, initial);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(initial | dirty, 0);
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	SAME(poll(&poll_fd, 1, 0), 0);
	/* What is written now comes again, and wakes who waits. */
	w4(d, MUTATE, 2);
	w8(d, WINDOW, 0x9000);
	w8(d, MEMORY, 0x1234);
	SAME(dma(d, FILL, 0, 2 * PAGE, 9), 0);
	SAME(dma(d, READ, 0, 2 * PAGE, 0x4000), 0);
	SAME(poll(&poll_fd, 1, 0), 1);
	SAME(precopy_info(fd, &initial, &dirty), 0);
	SAME(initial, 0);
	TRUE(dirty > 2 * PAGE && dirty < 5 * PAGE);
	before = size;
	SAME(set_state(d, STATE(PRE_COPY_P2P), &same_fd), 0);
	SAME(same_fd, -1);
	SAME(set_state(d, STATE(STOP_COPY), &same_fd), 0);
	SAME(same_fd, -1);
	SAME(precopy_info(fd, &initial, &dirty), EINVAL);
	size += read_all(fd, data + size, sizeof(data) - size, &error);
	SAME(error, 0);
	TRUE(size - before < 7 * PAGE);
	SAME(set_state(d, STATE(STOP), NULL), 0);
	SAME(read_all(fd, data + size, 1, &error), 0);
	SAME(error, ENODEV);
	SAME(precopy_info(fd, &initial, &dirty), ENODEV);
	close(fd);
	SAME(load(other, size, sizeof(data)), 0);
	SAME(r8(other, HASH), r8(d, HASH));
}

/* Given up, and begun again: the second session is complete. */
static void rule_cancel(struct device *d, struct device *other)
{
	int fd, error;

	SAME(set_state(d, STATE(PRE_COPY), &fd), 0);
	TRUE(read_all(fd, data, 300000, &error) > 0);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	SAME(read_all(fd, data, 1, &error), 0);
	SAME(error, ENODEV);
	close(fd);
	w4(d, MUTATE, 11);
	SAME(load(other, save(d), 4096), 0);
	SAME(r8(other, HASH), r8(d, HASH));
}

static void rule_reads(struct device *d, struct device *other)
{
	uint8_t *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd, error;

	(void)other;
	size_t size = save(d);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	munmap(two + PAGE, PAGE);
	SAME(set_state(d, STATE(STOP_COPY), &fd), 0);
	SAME(pread(fd, two, 1, 0), -1);
	SAME(errno, ESPIPE);
	SAME(read(fd, two, 0), 0);
	SAME(read(fd, two, 1), 1);
	SAME(two[0], data[0]);
	/* One that cannot be put where it should go loses nothing. */
	ssize_t got = read(fd, two, 2 * PAGE);
	TRUE(got < 0 ? errno == EFAULT : got <= PAGE);
	SAME(write(fd, two, 1), -1);
	SAME(read_all(fd, data + (1 << 21), 1 << 21, &error) + 1 + (got > 0 ? got : 0), size);
	SAME(error, 0);
	close(fd);
}

static int resume(struct device *d, size_t size)
{
	int error = load(d, size, 4096);

	if (error) {
		SAME(get_state(d), STATE(RESUMING));
		/* The second try is not better than the first. */
		TRUE(set_state(d, STATE(STOP), NULL));
		reset(d);
		SAME(get_state(d), STATE(RUNNING));
	}
	return error;
}

static void rule_refusals(struct device *d, struct device *other)
{
	(void)other;
	work(d, 9);
	size_t size = save(d);
	SAME(resume(d, size), 0);
	SAME(resume(d, 0), EINVAL);
	SAME(resume(d, size - 1), EINVAL);
	SAME(resume(d, size / 2), EINVAL);
	SAME(resume(d, size + 1), EINVAL);
	for (size_t at = 0; at < size; at += size / 23) {
		data[at] ^= 4;
		SAME(resume(d, size), EINVAL);
		data[at] ^= 4;
	}
	uint8_t page[4124];
	size_t head = 20 + 16;
	memcpy(page, data + head, sizeof(page));
	memcpy(data + head, data + head + sizeof(page), sizeof(page));
	memcpy(data + head + sizeof(page), page, sizeof(page));
	SAME(resume(d, size), EINVAL);
}

/* Of a device with other memory. */
static void rule_other_size(struct device *d, struct device *other)
{
	TRUE(r8(d, MEMORY_SIZE) != r8(other, MEMORY_SIZE));
	SAME(resume(other, save(d)), EINVAL);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	SAME(resume(d, save(other)), EINVAL);
}

/* What is stopped does nothing, and what is running again goes on. */
static void rule_quiet(struct device *d, struct device *other)
{
	static const uint32_t stopped[] = { STATE(STOP), STATE(STOP_COPY), STATE(RESUMING) };
	static uint8_t ram[RAM_SIZE];
	uint32_t value;

	(void)other;
	enable_msi(d, 4);
	for (int i = 0; i < 3; i++) {
		/* Longer than any user waits. */
		dma_start(d, FILL | IRQ | REPEAT, 0, 8 * PAGE, i);
		usleep(20000);
		SAME(set_state(d, stopped[i], NULL), 0);
		signals(d->msi[0], 0);
		uint64_t hash = r8(d, HASH);
		memcpy(ram, d->ram, RAM_SIZE);
		w4(d, MUTATE, 1);
		w4(d, IRQ_RAISE, 15);
		w4(d, DMA_CMD, 0);
		usleep(100000);
		SAME(r8(d, HASH), hash);
		SAME(memcmp(ram, d->ram, RAM_SIZE), 0);
		SAME(signals(d->msi[0], 0), 0);
		SAME(pread(d->fd, &value, 4, d->config), 4);
		enable_msi(d, 4);
		if (stopped[i] == STATE(RESUMING)) {
			SAME(set_state(d, STATE(STOP), NULL), EINVAL);
			reset(d);
			continue;
		}
		SAME(set_state(d, STATE(RUNNING), NULL), 0);
		TRUE(signals(d->msi[0], 10000));
		w4(d, DMA_CMD, 0);
		for (int n = 0; r4(d, DMA_STATUS) & BUSY; n++)
			TRUE(n < 1000 && !usleep(1000));
	}
	/* A peer's memory is left alone in the P2P states. */
	SAME(set_state(d, STATE(RUNNING_P2P), NULL), 0);
	dma_start(d, FILL | PEER, 0, PAGE, 5);
	usleep(50000);
	SAME(r8(d, DMA_DONE), 0);
	SAME(set_state(d, STATE(RUNNING), NULL), 0);
	for (int n = 0; r4(d, DMA_STATUS) & BUSY; n++)
		TRUE(n < 1000 && !usleep(1000));
	TRUE(has_pattern(d->ram, PAGE, 5));
}

/* As a migration does: a page that is reported is copied. In the end the copy is right, whenever the reports came. */
static void race(struct device *d)
{
	static uint8_t copy[PAGE];
	unsigned int count, busy;
	int first;

	for (uint32_t round = 0; round < 20; round++) {
		dma_start(d, FILL, 40 * PAGE, PAGE, round + 100);
		do {
			busy = r4(d, DMA_STATUS) & BUSY;
			SAME(log_report(d, RAM + 40 * PAGE, PAGE, &count, &first), 0);
			if (count)
				memcpy(copy, d->ram + 40 * PAGE, PAGE);
		} while (busy);
		SAME(memcmp(copy, d->ram + 40 * PAGE, PAGE), 0);
	}
}

static void rule_log(struct device *d, struct device *other)
{
	const uint64_t ranges[] = { RAM, 16 * PAGE, RAM + 32 * PAGE, 16 * PAGE };
	uint64_t page_size;
	unsigned int count;
	int first;

	(void)other;
	SAME(log_report(d, RAM, PAGE, &count, &first), EINVAL);
	SAME(log_start(d, ranges, 2, &page_size), 0);
	SAME(page_size, PAGE);
	SAME(log_start(d, ranges, 2, &page_size), EBUSY);
	SAME(log_report(d, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 0);
	SAME(dma(d, FILL, 3 * PAGE, PAGE, 1), 0);
	SAME(dma(d, FILL, 33 * PAGE + 4090, 12, 1), 0);
	SAME(dma(d, FILL, 20 * PAGE, PAGE, 1), 0);
	SAME(dma(d, CHECK, 7 * PAGE, PAGE, 1), 0);
	/* A report of a part leaves the other. */
	SAME(log_report(d, RAM + 32 * PAGE, 16 * PAGE, &count, &first), 0);
	SAME(count, 2);
	SAME(first, 1);
	SAME(log_report(d, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 1);
	SAME(first, 3);
	SAME(log_report(d, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 0);
	race(d);
	/* The last page before a stop is reported after it. */
	w4(d, DMA_DELAY, 5000);
	dma_start(d, FILL | REPEAT, 8 * PAGE, PAGE, 1);
	usleep(30000);
	SAME(set_state(d, STATE(STOP), NULL), 0);
	SAME(log_report(d, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 1);
	SAME(first, 8);
	SAME(log_stop(d), 0);
	SAME(log_report(d, RAM, PAGE, &count, &first), EINVAL);
}

/* What leads where in one call, and gives a file or not; 0: the call fails. From 6.12's vfio.h, "Device migration state". */
static void rule_arcs(struct device *d, struct device *other)
{
	static const uint32_t all[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ~0u };
	int fd;

	(void)other;
	for (uint32_t from = 1; from <= 7; from++) {
		for (int i = 0; i < 11; i++) {
			uint32_t to = all[i];
			bool back = from == STATE(STOP_COPY) && (to == STATE(PRE_COPY) || to == STATE(PRE_COPY_P2P));
			bool bad = to == 0 || to > 7 || back || (from == STATE(RESUMING) && to != from);
			bool saving = from == STATE(PRE_COPY) || from == STATE(PRE_COPY_P2P);
			bool file = to == STATE(RESUMING) || to == STATE(PRE_COPY) || to == STATE(PRE_COPY_P2P) || to == STATE(STOP_COPY);

			SAME(set_state(d, from, NULL), 0);
			SAME(set_state(d, to, &fd), bad ? EINVAL : 0);
			SAME(get_state(d), bad ? from : to);
			/* Within the saving states the file stays the same. */
			if (from == to || (saving && to != STATE(RESUMING)))
				file = false;
			SAME(fd >= 0, file && !bad);
			if (fd >= 0)
				close(fd);
			reset(d);
		}
	}
}

/* Each arc can be made to fail, where it is or into ERROR, which a reset leaves. */
static void rule_fail_arc(struct device *d, struct device *other)
{
	(void)other;
	parameter("fail_arc", "RUNNING_P2P:STOP");
	SAME(set_state(d, STATE(STOP_COPY), NULL), EIO);
	SAME(get_state(d), STATE(RUNNING_P2P));
	parameter("fail_error", "1");
	SAME(set_state(d, STATE(STOP), NULL), EIO);
	SAME(get_state(d), STATE(ERROR));
	parameter("fail_arc", "none");
	parameter("fail_error", "0");
	SAME(set_state(d, STATE(RUNNING), NULL), EINVAL);
	reset(d);
	SAME(get_state(d), STATE(RUNNING));
	SAME(set_state(d, STATE(STOP_COPY), NULL), 0);
}

/* A reset ends the session, not the logging. */
static void rule_reset_session(struct device *d, struct device *other)
{
	const uint64_t range[] = { RAM, RAM_SIZE };
	uint64_t page_size;
	unsigned int count;
	int fd, error, first;

	(void)other;
	SAME(log_start(d, range, 1, &page_size), 0);
	SAME(set_state(d, STATE(PRE_COPY), &fd), 0);
	SAME(dma(d, FILL, 0, 1, 1), 0);
	reset(d);
	SAME(get_state(d), STATE(RUNNING));
	SAME(read_all(fd, data, 1, &error), 0);
	SAME(error, ENODEV);
	close(fd);
	SAME(log_report(d, RAM, RAM_SIZE, &count, &first), 0);
	SAME(count, 1);
	SAME(set_state(d, STATE(RESUMING), NULL), 0);
}

/* After rule_reset_session the next user begins anew. */
static void rule_reopened(struct device *d, struct device *other)
{
	unsigned int count;
	int first;

	(void)other;
	SAME(get_state(d), STATE(RUNNING));
	SAME(log_report(d, RAM, PAGE, &count, &first), EINVAL);
	SAME(dma(d, FILL, 0, 8, 1), 0);
}

const struct rule rules_d[] = {
	{ "move", rule_move }, { "precopy", rule_precopy }, { "cancel", rule_cancel }, { "reads", rule_reads },
	{ "refusals", rule_refusals }, { "other-size", rule_other_size }, { "quiet", rule_quiet }, { "log", rule_log },
	{ "arcs", rule_arcs }, { "fail-arc", rule_fail_arc }, { "reset-session", rule_reset_session }, { "reopened", rule_reopened },
	{ NULL, NULL },
};
