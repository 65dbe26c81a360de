// SPDX-License-Identifier: GPL-2.0-only
// abi b: the dirty pages by the migration region. See check.c.
#define _GNU_SOURCE
#include "check.h"
#include "region-user.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The dirty pages of [first, first + total) in pages of the user's size, by the loop of B's text. How often it was asked. */
static unsigned int query(struct device *d, uint64_t first, uint64_t total, uint64_t size, uint8_t *dirty)
{
	struct region r = migration(d);
	unsigned int asked = 0;
	uint64_t done = 0;

	memset(dirty, 0, total);
	while (done < total) {
		SAME(set(d, START_PFN, 8, first + done), 0);
		SAME(set(d, PAGE_SIZE, 8, size), 0);
		SAME(set(d, TOTAL_PFNS, 8, total - done), 0);
		uint64_t copied = get8(d, COPIED_PFNS);
		asked++;
		TRUE(copied <= total - done);
		if (!copied)
			break;
		uint8_t *bits = malloc((copied + 7) / 8);
		SAME(pread(d->fd, bits, (copied + 7) / 8, r.at + get8(d, DATA_OFFSET)), (copied + 7) / 8);
		for (uint64_t i = 0; i < copied; i++)
			dirty[done + i] = bits[i / 8] >> (i % 8) & 1;
		free(bits);
		done += copied;
	}
	return asked;
}

static unsigned int sum(const uint8_t *at, unsigned int count)
{
	unsigned int n = 0;

	while (count--)
		n += *at++;
	return n;
}

static void rule_dirty(struct device *d, struct device *other)
{
	static uint8_t dirty[50000];
	const uint64_t ram = RAM / PAGE;
	uint64_t value;

	(void)other;
	SAME(set(d, PAGE_SIZE, 8, PAGE), 0);
	SAME(set(d, TOTAL_PFNS, 8, 1), 0);
	SAME(get(d, COPIED_PFNS, 8, &value), EINVAL);
	SAME(go(d, RUNNING | SAVING), 0);
	SAME(query(d, 0, 50000, PAGE, dirty), 1);
	SAME(sum(dirty, 50000), 0);
	SAME(dma(d, FILL, 5 * PAGE + 4092, 8, 1), 0);
	SAME(dma(d, FILL, 100 * PAGE, PAGE, 1), 0);
	SAME(dma(d, CHECK, 50 * PAGE, PAGE, 1), 0);
	/* Only what was asked for; the rest stays. */
	SAME(query(d, ram + 6, 50, PAGE, dirty), 1);
	SAME(sum(dirty, 50), 1);
	SAME(dirty[0], 1);
	/* From far before it: several answers. */
	SAME(query(d, 0, 50000, PAGE, dirty) > 1, 1);
	SAME(sum(dirty, 50000), 2);
	SAME(dirty[ram + 5] + dirty[ram + 100], 2);
	SAME(query(d, ram, 256, PAGE, dirty), 1);
	SAME(sum(dirty, 256), 0);
	/* In larger pages, and the last one before a stop. */
	w4(d, DMA_DELAY, 5000);
	dma_start(d, FILL | REPEAT, 70 * PAGE, PAGE, 1);
	usleep(30000);
	SAME(go(d, SAVING), 0);
	SAME(query(d, RAM >> 16, 16, 1 << 16, dirty), 1);
	SAME(sum(dirty, 16), 1);
	SAME(dirty[4], 1);
	for (uint64_t bad = 0; bad < 3; bad++) {
		SAME(set(d, PAGE_SIZE, 8, bad * 2048 + bad), 0);
		SAME(get(d, COPIED_PFNS, 8, &value), EINVAL);
	}
}

const struct rule rules_b[] = {
	{ "b-dirty", rule_dirty }, { NULL, NULL },
};
