/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The internal state as a stream of bytes; abi b, c and d carry the same one.
 *
 *   IDENTITY  first: which device, which version, how much memory
 *   PAGE      a page of device memory, again whenever it was written
 *   MAILBOX, STATE, END   of the stopped device; nothing comes after END
 *   PAD       may be anywhere before END and means nothing
 *
 * A record is a header and a body. The header numbers the records and has a
 * CRC over both, END says how many there were, and all pages must have come:
 * what is cut, changed, repeated or in another order is refused.
 */
#ifndef BRINGUP_STREAM_H
#define BRINGUP_STREAM_H

#include <linux/crc32.h>
#include "bringup.h"

#define REC_MAGIC	0x52554246	/* "FBUR" */

enum { REC_IDENTITY = 1, REC_PAGE, REC_MAILBOX, REC_STATE, REC_END, REC_PAD };

struct rec_head {
	u32 magic, type, seq, len, crc;
};

struct rec_identity {
	u32 id, version;
	u64 memory_size;
};

struct rec_page {
	u64 at;
	u8 bytes[PAGE_SIZE];
};

union rec_body {
	struct rec_identity identity;
	struct rec_page page;
	u8 mailbox[BRING_MAILBOX_SIZE];
	struct bring_regs state;
	u32 records;	/* END */
};

#define REC_SIZE(body)	(sizeof(struct rec_head) + (body))
#define PAGE_REC	REC_SIZE(sizeof(struct rec_page))
#define TAIL_SIZE	(REC_SIZE(BRING_MAILBOX_SIZE) + \
			 REC_SIZE(sizeof(struct bring_regs)) + REC_SIZE(4))

/* What IDENTITY says; an instance has no name of its own. */
static inline u32 rec_version(struct bring_device *dev)
{
	bool bound = bring_bug(dev, BUG_D_INSTANCE_BOUND) ||
		     bring_bug(dev, BUG_B_INSTANCE_BOUND) ||
		     bring_bug(dev, BUG_C_INSTANCE_BOUND);

	return BRING_VERSION + (bound ? dev->instance : 0);
}

static inline u32 rec_crc(const struct rec_head *head, const void *body)
{
	u32 crc = crc32_le(~0, (const u8 *)head, offsetof(struct rec_head, crc));

	return crc32_le(crc, body, head->len);
}

#endif
