// SPDX-License-Identifier: GPL-2.0-only
// abi b and c: the migration region. See check.c; the steps a to f are those of the region's text.
#define _GNU_SOURCE
#include "check.h"
#include "region-user.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint8_t data[4 << 20];
/* Chunks one after the other in `data`. */
static struct { size_t at, size; } chunks[400];

/* Takes the chunks that there are now; `n` is the number of those before. */
static unsigned int take(struct device *d, unsigned int n)
{
	struct region r = migration(d);

	while (get8(d, PENDING)) {
		SAME(get8(d, PENDING) > 0, 1);
		size_t at = n ? chunks[n - 1].at + chunks[n - 1].size : 0;
		uint64_t offset = get8(d, DATA_OFFSET), size = get8(d, DATA_SIZE);

		TRUE(n < 400 && size && offset >= 64 && offset + size <= r.size && at + size <= sizeof(data));
		SAME(get8(d, DATA_OFFSET), offset);
		SAME(get8(d, DATA_SIZE), size);
		SAME(pread(d->fd, data + at, size, r.at + offset), size);
		chunks[n].at = at;
		chunks[n++].size = size;
	}
	return n;
}

/* Bytes by which the commit of chunk 3 is short of what was written. */
static unsigned int short_by;

/* errno of the first thing that fails; each chunk in one piece. */
static int give(struct device *d, unsigned int n)
{
	struct region r = migration(d);

	for (unsigned int i = 0; i < n; i++) {
		uint64_t offset = get8(d, DATA_OFFSET);

		SAME(pwrite(d->fd, data + chunks[i].at, chunks[i].size, r.at + offset), chunks[i].size);
		int error = set(d, DATA_SIZE, 8, chunks[i].size - (i == 3 ? short_by : 0));
		if (error)
			return error;
	}
	return 0;
}

/* With pre-copy and a change in it; what stands in its middle goes on at the destination. */
static void rule_move(struct device *d, struct device *other)
{
	work(d, 3);
	usleep(50000);
	SAME(go(d, RUNNING | SAVING), 0);
	unsigned int before = take(d, 0), n;
	w4(d, MUTATE, 99);
	n = take(d, before);
	TRUE(n > before && n < before + 3);
	SAME(go(d, SAVING), 0);
	n = take(d, n);
	SAME(get8(d, PENDING), 0);
	uint64_t hash = r8(d, HASH), done = r8(d, DMA_DONE);
	TRUE(done > 0 && done < 0x30000);
	SAME(go(d, 0), 0);
	SAME(go(other, RESUMING), 0);
	SAME(give(other, n), 0);
	SAME(go(other, 0), 0);
	SAME(r8(other, HASH), hash);
	usleep(50000);
	SAME(r8(d, HASH), hash);
	memcpy(other->ram, d->ram, RAM_SIZE);
	enable_msi(other, 4);
	SAME(go(other, RUNNING), 0);
	SAME(signals(other->msi[3], 0), 1);
	SAME(signals(other->msi[0], 20000), 1);
	TRUE(has_pattern(other->ram + 0x20000, 0x30000, 4));
	SAME(go(d, RUNNING), 0);
}

/* Only at their own width and place. */
static void rule_access(struct device *d, struct device *other)
{
	static const struct { unsigned int at, size; } bad[] = {
		{ STATE, 1 }, { STATE, 2 }, { STATE, 8 }, { STATE + 1, 4 }, { PENDING, 4 }, { PENDING + 4, 4 }, { DATA_OFFSET, 2 },
		{ DATA_SIZE, 4 }, { DATA_SIZE + 4, 8 }, { 64, 8 }, { 72, 4 },
	};
	uint64_t value;

	(void)other;
	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		SAME(get(d, bad[i].at, bad[i].size, &value), EINVAL);
		SAME(set(d, bad[i].at, bad[i].size, 0), EINVAL);
		SAME(state(d), RUNNING);
	}
	SAME(set(d, PENDING, 8, 0), EINVAL);
	SAME(set(d, DATA_OFFSET, 8, 0), EINVAL);
	SAME(set(d, RESERVED, 4, 7), 0);
	SAME(get(d, RESERVED, 4, &value), 0);
	SAME(value, 0);
}

static void rule_states(struct device *d, struct device *other)
{
	/* From, to, as the texts have it; all others fail. */
	static const uint8_t legal[][2] = {
		{ 1, 0 }, { 1, 2 }, { 1, 3 }, { 1, 4 }, { 3, 2 }, { 3, 1 }, { 3, 0 }, { 2, 0 }, { 2, 1 }, { 0, 1 }, { 0, 2 }, { 0, 4 },
	};

	(void)other;
	for (uint32_t from = 0; from < 5; from++) {
		for (uint32_t to = 0; to < 8; to++) {
			bool good = from == to;

			for (unsigned int i = 0; i < sizeof(legal) / 2; i++)
				good |= legal[i][0] == from && legal[i][1] == to;
			SAME(go(d, from), 0);
			SAME(go(d, to), good ? 0 : EINVAL);
			SAME(state(d), good ? to : from);
			reset(d);
			SAME(state(d), RUNNING);
		}
	}
	/* What has no meaning yet is kept. */
	SAME(go(d, 0xabcdef0 | RUNNING), 0);
	SAME(state(d), 0xabcdef0 | RUNNING);
	SAME(go(d, 0xabcdef0), 0);
	SAME(state(d), 0xabcdef0);
}

static int resume(struct device *d, unsigned int n)
{
	SAME(go(d, RESUMING), 0);
	int error = give(d, n);
	if (!error)
		error = go(d, RUNNING);
	if (error) {
		SAME(state(d), RESUMING);
		TRUE(go(d, 0));
	}
	reset(d);
	return error;
}

/* A chunk is what it was; the data is complete or refused. */
static void rule_refusals(struct device *d, struct device *other)
{
	(void)other;
	work(d, 5);
	SAME(go(d, SAVING), 0);
	unsigned int n = take(d, 0);
	TRUE(n > 10);
	reset(d);
	SAME(resume(d, n), 0);
	SAME(resume(d, 0), EINVAL);
	SAME(resume(d, n - 1), EINVAL);
	short_by = 1;
	SAME(resume(d, n), EINVAL);
	short_by = 0;
	chunks[3].size--;
	SAME(resume(d, n), EINVAL);
	chunks[3].size++;
	chunks[n - 1].size++;
	SAME(resume(d, n), EINVAL);
	chunks[n - 1].size--;
	data[chunks[4].at + 500] ^= 1;
	SAME(resume(d, n), EINVAL);
	data[chunks[4].at + 500] ^= 1;
	/* Twice the same one. */
	chunks[2] = chunks[1];
	SAME(resume(d, n), EINVAL);
}

/* Pre-copy may be left at any time, and begun again; a chunk that nobody asked the size of is given again. */
static void rule_early(struct device *d, struct device *other)
{
	SAME(go(d, RUNNING | SAVING), 0);
	TRUE(get8(d, PENDING));
	uint64_t offset = get8(d, DATA_OFFSET);
	SAME(go(d, RUNNING), 0);
	SAME(get8(d, PENDING), 0);
	w4(d, MUTATE, 4);
	SAME(go(d, RUNNING | SAVING), 0);
	SAME(get8(d, PENDING) > 1 << 20, 1);
	SAME(get8(d, DATA_OFFSET), offset);
	SAME(go(d, SAVING), 0);
	unsigned int n = take(d, 0);
	SAME(go(other, RESUMING), 0);
	SAME(give(other, n), 0);
	SAME(go(other, RUNNING), 0);
	SAME(r8(other, HASH), r8(d, HASH));
}

/* Stopped is stopped before the write returns. */
static void rule_quiet(struct device *d, struct device *other)
{
	static const uint32_t stopped[] = { 0, SAVING, RESUMING };

	(void)other;
	for (int i = 0; i < 3; i++) {
		dma_start(d, FILL | REPEAT, 0, 8 * PAGE, i);
		usleep(20000);
		SAME(go(d, stopped[i]), 0);
		uint64_t hash = r8(d, HASH);
		usleep(50000);
		SAME(r8(d, HASH), hash);
		reset(d);
	}
}

static void rule_fail_arc(struct device *d, struct device *other)
{
	bool c = migration(d).type == 3;

	(void)other;
	parameter("fail_arc", "1:2");
	SAME(go(d, SAVING), EIO);
	SAME(state(d), RUNNING);
	SAME(dma(d, FILL, 0, 8, 1), 0);
	parameter("fail_error", "1");
	SAME(go(d, SAVING), EIO);
	/* B has no error state; only it has this field. */
	SAME(state(d), c && set(d, START_PFN, 8, 0) ? BAD : RUNNING);
	parameter("fail_arc", "none");
	parameter("fail_error", "0");
	if (state(d) == BAD)
		SAME(go(d, RUNNING), EINVAL);
	reset(d);
	SAME(state(d), RUNNING);
	SAME(go(d, SAVING), 0);
}

/* RESUMING to STOP is refused, RESUMING to RUNNING is where the data is looked at. With late_validation=1. */
static void rule_late(struct device *d, struct device *other)
{
	(void)other;
	parameter("late_validation", "1");
	SAME(go(d, SAVING), 0);
	unsigned int n = take(d, 0);
	reset(d);
	SAME(go(d, RESUMING), 0);
	SAME(give(d, n), 0);
	SAME(go(d, 0), EINVAL);
	SAME(state(d), RESUMING);
	SAME(go(d, RUNNING), 0);
	SAME(resume(d, n - 1), EINVAL);
	parameter("late_validation", "0");
}

/* The data section by a mapping. With features that have it. */
static void rule_mapped(struct device *d, struct device *other)
{
	struct region r = migration(d);

	(void)other;
	TRUE(r.map_at >= 64 && r.map_at % PAGE == 0 && r.map_size);
	uint8_t *map = mmap(NULL, r.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, r.at + r.map_at);
	TRUE(map != MAP_FAILED);
	SAME(go(d, SAVING), 0);
	TRUE(get8(d, PENDING));
	uint64_t offset = get8(d, DATA_OFFSET), size = get8(d, DATA_SIZE);
	SAME(offset % PAGE, 0);
	SAME(pread(d->fd, data, size, r.at + offset), size);
	SAME(memcmp(data, map + offset - r.map_at, size), 0);
	TRUE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, d->fd, r.at) == MAP_FAILED);
	munmap(map, r.map_size);
}

/* Chunks larger than the destination's section, in pieces as QEMU 5.2 to 7.2 gave them. */
static void rule_split(struct device *d, struct device *other)
{
	struct region r = migration(other);
	uint64_t room = r.size - get8(other, DATA_OFFSET);

	work(d, 6);
	SAME(go(d, SAVING), 0);
	unsigned int n = take(d, 0);
	TRUE(chunks[0].size > room);
	SAME(go(other, RESUMING), 0);
	for (unsigned int i = 0; i < n; i++)
		for (size_t at = 0; at < chunks[i].size;) {
			size_t piece = chunks[i].size - at < room ? chunks[i].size - at : room;
			uint64_t offset = get8(other, DATA_OFFSET);

			SAME(pwrite(other->fd, data + chunks[i].at + at, piece, r.at + offset), piece);
			SAME(set(other, DATA_SIZE, 8, piece), 0);
			at += piece;
		}
	SAME(go(other, 0), 0);
	SAME(r8(other, HASH), r8(d, HASH));
}

const struct rule rules_bc[] = {
	{ "bc-move", rule_move }, { "bc-access", rule_access }, { "bc-states", rule_states }, { "bc-refusals", rule_refusals },
	{ "bc-early", rule_early }, { "bc-quiet", rule_quiet }, { "bc-fail-arc", rule_fail_arc }, { "bc-late", rule_late },
	{ "bc-mapped", rule_mapped }, { "bc-split", rule_split }, { NULL, NULL },
};
