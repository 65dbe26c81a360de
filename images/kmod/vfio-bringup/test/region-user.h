/* SPDX-License-Identifier: GPL-2.0-only */
/* The migration region of abi b and c: fields and device_state. Functions return an errno, or 0, if they may fail. For rules-b*.c. */
#ifndef REGION_USER_H
#define REGION_USER_H

#include "user.h"

enum {
	STATE = 0, RESERVED = 4, PENDING = 8, DATA_OFFSET = 16, DATA_SIZE = 24, START_PFN = 32, PAGE_SIZE = 40, TOTAL_PFNS = 48, COPIED_PFNS = 56,
	RUNNING = 1, SAVING = 2, RESUMING = 4, BAD = 6,
};

/* The region of either generation: B's may be of type 2, which it shares with abi a, or of type 3, as C's. */
struct region migration(struct device *d);
int get(struct device *d, unsigned int field, unsigned int size, uint64_t *value);
int set(struct device *d, unsigned int field, unsigned int size, uint64_t value);
uint64_t get8(struct device *d, unsigned int field);
uint32_t state(struct device *d);
int go(struct device *d, uint32_t to);

#endif
