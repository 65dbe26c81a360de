// SPDX-License-Identifier: GPL-2.0-only
// See region-user.h.
#define _GNU_SOURCE
#include "region-user.h"
#include <errno.h>
#include <unistd.h>

struct region migration(struct device *d)
{
	struct region r = region(d, VFIO_PCI_NUM_REGIONS);

	TRUE((r.type == 2 || r.type == 3) && r.subtype == 1);
	return r;
}

int get(struct device *d, unsigned int field, unsigned int size, uint64_t *value)
{
	ssize_t done;

	*value = 0;
	done = pread(d->fd, value, size, migration(d).at + field);
	return done == size ? 0 : errno;
}

int set(struct device *d, unsigned int field, unsigned int size, uint64_t value)
{
	return pwrite(d->fd, &value, size, migration(d).at + field) == size ? 0 : errno;
}

uint64_t get8(struct device *d, unsigned int field)
{
	uint64_t value;

	SAME(get(d, field, 8, &value), 0);
	return value;
}

uint32_t state(struct device *d)
{
	uint64_t value;

	SAME(get(d, STATE, 4, &value), 0);
	return value;
}

int go(struct device *d, uint32_t to)
{
	return set(d, STATE, 4, to);
}
