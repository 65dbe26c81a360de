// SPDX-License-Identifier: GPL-2.0-only
/*
 * What vfio-bringup has to do right, a rule each: `check RULE GROUP UUID [GROUP UUID]`. Prints "ok RULE" or one line that begins with
 * FAIL. Run in a lab host by test/lab/kmod-bringup.test.ts.
 */
#define _GNU_SOURCE
#include "check.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void work(struct device *d, uint32_t seed)
{
	uint8_t page[PAGE];

	for (int i = 0; i < 8; i++)
		w4(d, MUTATE, seed + i);
	w8(d, SCRATCH, seed * 0x100000001ull);
	w8(d, WINDOW, 0x3000);
	memset(page, seed, sizeof(page));
	SAME(pwrite(d->fd, page, 100, d->bar + MEMORY + 5), 100);
	SAME(pwrite(d->fd, page, sizeof(page), d->bar2), PAGE);
	SAME(dma(d, FILL, 0x1000, 0x2345, seed), 0);
	SAME(dma(d, READ, 0x1000, 0x2345, 0x5001), 0);
	w4(d, IRQ_RAISE, 8);
	w4(d, DMA_DELAY, 20000);
	dma_start(d, FILL | IRQ, 0x20000, 0x30000, seed + 1);
}

static const struct rule *find(const char *name)
{
	const struct rule *lists[] = { rules_device, rules_a, rules_b, rules_bc, rules_d, rules_faults };

	for (unsigned int l = 0; l < sizeof(lists) / sizeof(*lists); l++)
		for (const struct rule *r = lists[l]; r->name; r++)
			if (!strcmp(r->name, name))
				return r;
	die("check RULE GROUP UUID [GROUP UUID]: no such rule: %s", name);
}

int main(int argc, char **argv)
{
	struct device first, second;

	setbuf(stdout, NULL);
	if (argc != 4 && argc != 6)
		die("check RULE GROUP UUID [GROUP UUID]");
	const struct rule *rule = find(argv[1]);

	/* A rule that failed may have left them. */
	parameter("fail_arc", "none");
	parameter("fail_error", "0");
	parameter("fail_read", "none");
	parameter("fail_write", "none");
	parameter("fail_reset", "0");
	parameter("gone", "0");
	parameter("hard_reset", "0");
	parameter("late_validation", "0");
	device_open(&first, argv[2], argv[3]);
	if (argc == 6)
		device_open(&second, argv[4], argv[5]);
	rule->run(&first, argc == 6 ? &second : NULL);
	device_close(&first);
	if (argc == 6)
		device_close(&second);
	printf("ok %s\n", argv[1]);
	return 0;
}
