/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * abi a: device-state regions, as proposed in February 2019 (struct
 * vfio_device_state_ctl). Four regions of type 2:
 *
 *   CTL     what is wanted; each field by one access of its own size, though
 *           not all are aligned
 *   CONFIG  registers and mailbox, always as a whole
 *   MEMORY  a chunk of a snapshot of device memory; under LOGGING of the
 *           pages that were written since the last one
 *   BITMAP  pages of RAM that were written; only under LOGGING
 *
 * Data is loaded in STOP, and SET_BUFFER's result is the verdict. There is
 * no resuming and no error state. state_mutex is held through every access.
 */
#ifndef BRINGUP_REGION_A_H
#define BRINGUP_REGION_A_H

#include "bringup.h"

#define STOP		BIT(0)
#define LOGGING		BIT(1)
#define GET_BUFFER	1
#define SET_BUFFER	2
#define CAP_MEMORY	BIT(0)
#define CAP_BITMAP	BIT(1)

#define CONFIG_SIZE		0x2000
#define BITMAP_SIZE		0x1000

enum { REGION_CTL, REGION_CONFIG, REGION_MEMORY, REGION_BITMAP };

struct a_config {
	u32 magic, crc;		/* of all that follows */
	struct bring_regs regs;
	u8 mailbox[BRING_MAILBOX_SIZE];
};

struct a_memory;

struct a_session {
	u8 *config, *chunk, *bitmap;	/* the regions */
	bool config_taken;
	u64 config_size;
	struct a_memory *memory;	/* a snapshot, or one that comes in */
	u64 memory_size, pos, received;
	bool loading;
	u64 start_addr;
};

static inline struct a_session *a_of(struct bring_device *dev)
{
	return dev->session;
}

static inline u32 a_caps(struct bring_device *dev)
{
	return (dev->features & BRING_NO_MEMORY ? 0 : CAP_MEMORY) |
	       (dev->features & BRING_NO_BITMAP ? 0 : CAP_BITMAP);
}

/* region-a-data.c */
int a_get_config(struct bring_device *dev);
int a_set_config(struct bring_device *dev);
int a_take_memory(struct bring_device *dev);
int a_expect_memory(struct bring_device *dev, u64 size);
int a_memory_action(struct bring_device *dev, u32 action);
/* By fail_read=, fail_write= and gone_*=, of the chunk at pos. */
int a_memory_fails(struct bring_device *dev, bool write);
void a_drop_memory(struct a_session *s);
int a_query(struct bring_device *dev, u64 start_addr, u64 count);

#endif
