/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * abi b and c: one migration region, with registers at its start (B: v7 of
 * July 2019, 64 bytes; C: linux/vfio.h of Linux 5.8 to 5.17, 32 bytes) and
 * the data section behind them.
 *
 *   C   a struct of device_state, pending_bytes, data_offset, data_size
 *   B   the same, and start_pfn, page_size, total_pfns, copied_pfns, by which
 *       the device tells the pages that it has written
 *
 * Fields are only to be accessed at their own width; anything else fails.
 * The stream goes in chunks, each with a header, so that one that is cut,
 * joined or out of turn is seen (unless BRING_SPLIT allows for pieces).
 * state_mutex is held through every access: the region has one user.
 */
#ifndef BRINGUP_REGION_BC_H
#define BRINGUP_REGION_BC_H

#include "bringup.h"

#define RUNNING		BIT(0)
#define SAVING		BIT(1)
#define RESUMING	BIT(2)
#define STATES		(RUNNING | SAVING | RESUMING)
#define BAD		(SAVING | RESUMING)	/* C: 110, the error state */

#define DATA_AT		PAGE_SIZE

struct bc_info {
	u32 device_state, reserved;
	u64 pending_bytes, data_offset, data_size;
	u64 start_pfn, page_size, total_pfns, copied_pfns;	/* B */
};

struct bc_session {
	struct bc_info info;	/* what the user wrote last */
	u8 *section;		/* the data section; may be mapped */
	struct bring_saver *saver;
	struct bring_loader *loader;
	u32 index;		/* of the next chunk */
	u64 staged;		/* bytes of the chunk in the section; 0: none */
	bool size_read;		/* its reader has got to step c */
	bool bitmap;		/* data_offset is that of a bitmap */
	u64 piece_left;		/* of a chunk that comes in pieces */
};

static inline struct bc_session *bc_of(struct bring_device *dev)
{
	return dev->session;
}

/* region-bc-data.c */
void bc_end_sessions(struct bc_session *s);
u64 bc_offset(struct bring_device *dev);
void bc_stage(struct bring_device *dev);
u64 bc_pending(struct bring_device *dev);
int bc_copied(struct bring_device *dev, u64 *copied);
int bc_commit(struct bring_device *dev, u64 size);
/* By fail_read= and gone_read=, of the chunk in the section. */
int bc_read_fails(struct bring_device *dev);

#endif
