// SPDX-License-Identifier: GPL-2.0-only
// abi a: device-state regions. See check.c.
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
	VERSION_AT = 0, STATE = 4, CAPS = 8, CONFIG_ACTION = 12, CONFIG_SIZE = 20, MEMORY_ACTION = 28, MEMORY_SIZE_AT = 36, MEMORY_POS = 44,
	START_ADDR = 52, PAGE_NR = 60, CTL_SIZE = 68,
	RUNNING = 0, STOP = 1, LOGGING = 2, GET = 1, SET = 2,
};

static uint8_t config[8192], memory[2 << 20];

static int set(struct device *d, unsigned int field, unsigned int size, uint64_t value)
{
	return pwrite(d->fd, &value, size, find_region(d, 2, 1).at + field) == size ? 0 : errno;
}

static int get(struct device *d, unsigned int field, unsigned int size, uint64_t *value)
{
	*value = 0;
	return pread(d->fd, value, size, find_region(d, 2, 1).at + field) == size ? 0 : errno;
}

static uint64_t field(struct device *d, unsigned int at, unsigned int size)
{
	uint64_t value;

	SAME(get(d, at, size, &value), 0);
	return value;
}

static int go(struct device *d, uint32_t to)
{
	return set(d, STATE, 4, to);
}

static uint64_t get_config(struct device *d)
{
	uint64_t size;

	SAME(set(d, CONFIG_ACTION, 4, GET), 0);
	size = field(d, CONFIG_SIZE, 8);
	TRUE(size <= sizeof(config));
	SAME(pread(d->fd, config, size, find_region(d, 2, 2).at), size);
	return size;
}

static int set_config(struct device *d, uint64_t size)
{
	SAME(set(d, CONFIG_SIZE, 8, size), 0);
	SAME(pwrite(d->fd, config, size, find_region(d, 2, 2).at), size);
	return set(d, CONFIG_ACTION, 4, SET);
}

static uint64_t get_memory(struct device *d)
{
	struct region r = find_region(d, 2, 3);
	uint64_t size = field(d, MEMORY_SIZE_AT, 8);

	TRUE(size <= sizeof(memory));
	for (uint64_t pos = 0; pos < size; pos += r.size) {
		uint64_t n = size - pos < r.size ? size - pos : r.size;

		SAME(set(d, MEMORY_POS, 8, pos), 0);
		SAME(set(d, MEMORY_ACTION, 4, GET), 0);
		SAME(pread(d->fd, memory + pos, n, r.at), n);
	}
	return size;
}

static int set_memory(struct device *d, uint64_t size)
{
	struct region r = find_region(d, 2, 3);

	SAME(set(d, MEMORY_SIZE_AT, 8, size), 0);
	for (uint64_t pos = 0; pos < size; pos += r.size) {
		uint64_t n = size - pos < r.size ? size - pos : r.size;
		int error;

		SAME(pwrite(d->fd, memory + pos, n, r.at), n);
		SAME(set(d, MEMORY_POS, 8, pos), 0);
		error = set(d, MEMORY_ACTION, 4, SET);
		if (error)
			return error;
	}
	return 0;
}

/* How many pages of RAM are dirty, and the first. */
static unsigned int dirty(struct device *d, uint64_t from, uint64_t count, int *first)
{
	uint64_t bits[4] = { 0 }, both[2] = { from, count };

	SAME(pwrite(d->fd, both, 16, find_region(d, 2, 1).at + START_ADDR), 16);
	SAME(pread(d->fd, bits, (count + 7) / 8, find_region(d, 2, 4).at), (count + 7) / 8);
	return count_bits(bits, count, first);
}

static void rule_move(struct device *d, struct device *other)
{
	uint64_t before, size;

	work(d, 3);
	usleep(50000);
	SAME(go(d, LOGGING), 0);
	SAME(go(other, STOP), 0);
	before = get_memory(d);
	TRUE(before > 1 << 20);
	SAME(set_memory(other, before), 0);
	SAME(get_memory(d), 0);
	w4(d, MUTATE, 9);
	SAME(go(d, STOP | LOGGING), 0);
	size = get_memory(d);
	TRUE(size > PAGE && size < 2 * PAGE);
	SAME(set_memory(other, size), 0);
	SAME(go(d, STOP), 0);
	SAME(set_config(other, get_config(d)), 0);
	SAME(r8(other, HASH), r8(d, HASH));
	memcpy(other->ram, d->ram, RAM_SIZE);
	enable_msi(other, 4);
	SAME(go(other, RUNNING), 0);
	SAME(signals(other->msi[3], 0), 1);
	SAME(signals(other->msi[0], 20000), 1);
	TRUE(has_pattern(other->ram + 0x20000, 0x30000, 4));
	SAME(go(d, RUNNING), 0);
}

static void rule_fields(struct device *d, struct device *other)
{
	static const unsigned int unreadable[] = { STATE, CONFIG_ACTION, MEMORY_ACTION, START_ADDR, PAGE_NR, 16, 32, 64 };
	uint64_t value;

	(void)other;
	SAME(find_region(d, 2, 1).size, CTL_SIZE);
	SAME(field(d, VERSION_AT, 4), 1);
	SAME(field(d, CAPS, 4), 3);
	for (unsigned int i = 0; i < sizeof(unreadable) / sizeof(*unreadable); i++)
		SAME(get(d, unreadable[i], 4, &value), EINVAL);
	SAME(set(d, VERSION_AT, 4, 1), EINVAL);
	SAME(set(d, CAPS, 4, 1), EINVAL);
	/* Each field by one access of its size. */
	SAME(get(d, CONFIG_SIZE, 4, &value), EINVAL);
	SAME(get(d, VERSION_AT, 8, &value), EINVAL);
	SAME(set(d, MEMORY_POS, 4, 0), EINVAL);
	SAME(get(d, CTL_SIZE, 4, &value), EINVAL);
}

/* All twelve arcs work, one to itself and unknown states do not; stopped is stopped. */
static void rule_states(struct device *d, struct device *other)
{
	(void)other;
	for (uint32_t from = 0; from < 4; from++)
		for (uint32_t to = 0; to < 8; to++) {
			reset(d);
			SAME(from ? go(d, from) : 0, 0);
			SAME(go(d, to), to > 3 || to == from ? EINVAL : 0);
			bool stopped = (to > 3 ? from : to) & STOP;
			uint64_t mutated = r8(d, SEQUENCE);
			w4(d, MUTATE, 1);
			SAME(r8(d, SEQUENCE), mutated + !stopped);
		}
	reset(d);
	dma_start(d, FILL | REPEAT, 0, 8 * PAGE, 1);
	usleep(20000);
	SAME(go(d, STOP | LOGGING), 0);
	uint64_t hash = r8(d, HASH);
	usleep(50000);
	SAME(r8(d, HASH), hash);
	parameter("fail_arc", "3:0");
	SAME(go(d, RUNNING), EIO);
	parameter("fail_arc", "none");
	SAME(go(d, RUNNING), 0);
	usleep(20000);
	TRUE(r8(d, HASH) != hash);
}

static void rule_dirty(struct device *d, struct device *other)
{
	uint64_t both[2] = { RAM, 4096 * 8 + 1 };
	int first;

	(void)other;
	SAME(dma(d, FILL, 0, PAGE, 1), 0);
	SAME(dirty(d, RAM, 256, &first), 0);
	SAME(go(d, LOGGING), 0);
	SAME(dma(d, FILL, 5 * PAGE + 4092, 8, 1), 0);
	SAME(dma(d, CHECK, 50 * PAGE, PAGE, 1), 0);
	SAME(dirty(d, RAM + 6 * PAGE, 10, &first), 1);
	SAME(first, 0);
	SAME(dirty(d, RAM, 256, &first), 1);
	SAME(first, 5);
	SAME(dirty(d, RAM, 256, &first), 0);
	/* The last one before a stop, collected after it. */
	w4(d, DMA_DELAY, 5000);
	dma_start(d, FILL | REPEAT, 8 * PAGE, PAGE, 1);
	usleep(30000);
	SAME(go(d, STOP | LOGGING), 0);
	SAME(dirty(d, RAM, 256, &first), 1);
	SAME(first, 8);
	SAME(pwrite(d->fd, both, 16, find_region(d, 2, 1).at + START_ADDR), -1);
	SAME(errno, EINVAL);
}

/* The verdict is SET_BUFFER's. */
static void rule_refusals(struct device *d, struct device *other)
{
	(void)other;
	work(d, 4);
	SAME(set_config(d, get_config(d)), EINVAL);
	usleep(50000);
	SAME(go(d, STOP), 0);
	uint64_t hash = r8(d, HASH), size = get_config(d);
	config[300] ^= 1;
	SAME(set_config(d, size), EINVAL);
	config[300] ^= 1;
	SAME(set_config(d, size), 0);
	SAME(set(d, CONFIG_SIZE, 8, size - 1), EINVAL);
	size = get_memory(d);
	memory[5000] ^= 1;
	SAME(set_memory(d, size), EINVAL);
	memory[5000] ^= 1;
	SAME(set_memory(d, size), 0);
	SAME(set_memory(d, size - PAGE - 8), EINVAL);
	SAME(set(d, MEMORY_SIZE_AT, 8, sizeof(memory)), EINVAL);
	SAME(set(d, MEMORY_ACTION, 4, SET), EINVAL);
	SAME(r8(d, HASH), hash);
}

const struct rule rules_a[] = {
	{ "a-move", rule_move }, { "a-fields", rule_fields }, { "a-states", rule_states }, { "a-dirty", rule_dirty },
	{ "a-refusals", rule_refusals }, { NULL, NULL },
};
