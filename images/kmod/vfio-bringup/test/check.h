/* SPDX-License-Identifier: GPL-2.0-only */
/* What the rules (rules-*.c) share: see check.c. */
#ifndef CHECK_H
#define CHECK_H

#include "user.h"

/* `other` is a second device, or NULL. */
struct rule {
	const char *name;
	void (*run)(struct device *d, struct device *other);
};

extern const struct rule rules_device[], rules_a[], rules_b[], rules_bc[], rules_d[], rules_faults[];

/* Some of everything: memory, mailbox, registers, a command that stands still in its middle, a pending interrupt. */
void work(struct device *d, uint32_t seed);

#endif
