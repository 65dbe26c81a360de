// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is made to fail (README.md): parameters that may be written at any
 * time and count at once, for all devices of the module. Read without a lock.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>
#include "bringup.h"

static bool fail_error, fail_reset, gone, hard_reset;

module_param(fail_error, bool, 0644);
MODULE_PARM_DESC(fail_error, "an arc that fails by fail_arc ends in ERROR");
module_param(fail_reset, bool, 0644);
MODULE_PARM_DESC(fail_reset, "VFIO_DEVICE_RESET fails with EIO");
module_param(gone, bool, 0644);
MODULE_PARM_DESC(gone, "whatever the user asks of the device fails with ENODEV");
module_param(hard_reset, bool, 0644);
MODULE_PARM_DESC(hard_reset, "a reset takes config space and eventfds too; DMA needs the bus master bit");

/* fail_arc=FROM:TO[,FROM:TO]; an arc in one word, as it is read without a lock. */
#define NO_ARC	U64_MAX
static u64 fail_arcs[2] = { NO_ARC, NO_ARC };

static const char * const state_names[] = {
	"ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P",
	"PRE_COPY", "PRE_COPY_P2P",
};

static int bring_parse_state(const char *text, u32 *state)
{
	int found = match_string(state_names, ARRAY_SIZE(state_names), text);

	if (found >= 0) {
		*state = found;
		return 0;
	}
	return kstrtou32(text, 0, state);
}

static int bring_parse_arc(char *text, u64 *arc)
{
	char *from = strsep(&text, ":");
	u32 first, second;

	if (!text || bring_parse_state(from, &first) ||
	    bring_parse_state(text, &second))
		return -EINVAL;
	*arc = (u64)first << 32 | second;
	return 0;
}

static int fail_arc_set(const char *text, const struct kernel_param *kp)
{
	u64 arcs[ARRAY_SIZE(fail_arcs)] = { NO_ARC, NO_ARC };
	char copy[64], *rest, *one;
	unsigned int n = 0;

	strscpy(copy, text);
	rest = strim(copy);
	if (!strcmp(rest, "none"))
		rest = NULL;
	while ((one = strsep(&rest, ",")))
		if (n == ARRAY_SIZE(arcs) || bring_parse_arc(one, &arcs[n++]))
			return -EINVAL;
	for (n = 0; n < ARRAY_SIZE(arcs); n++)
		WRITE_ONCE(fail_arcs[n], arcs[n]);
	return 0;
}

static int fail_arc_get(char *text, const struct kernel_param *kp)
{
	unsigned int n;
	int at = 0;

	for (n = 0; n < ARRAY_SIZE(fail_arcs); n++) {
		u64 arc = READ_ONCE(fail_arcs[n]);

		if (arc != NO_ARC)
			at += sysfs_emit_at(text, at, "%s%u:%u", at ? "," : "",
					    (u32)(arc >> 32), (u32)arc);
	}
	return at + sysfs_emit_at(text, at, at ? "\n" : "none\n");
}

static const struct kernel_param_ops fail_arc_ops = {
	.set = fail_arc_set,
	.get = fail_arc_get,
};
module_param_cb(fail_arc, &fail_arc_ops, NULL, 0644);
MODULE_PARM_DESC(fail_arc, "FROM:TO[,FROM:TO], arcs that fail with EIO; none");

int bring_fail_arc(u32 from, u32 to, bool *error)
{
	u64 arc = (u64)from << 32 | to;
	unsigned int n;

	*error = fail_error;
	for (n = 0; n < ARRAY_SIZE(fail_arcs); n++)
		if (READ_ONCE(fail_arcs[n]) == arc)
			return -EIO;
	return 0;
}

/* From which chunk of a session on calls fail, or the device is gone. */
enum bring_place { PLACE_NONE, PLACE_FIRST, PLACE_MIDDLE, PLACE_LAST };
static const char * const place_names[] = { "none", "first", "middle", "last" };
static int fail_read, fail_write, gone_read, gone_write;

static int place_set(const char *text, const struct kernel_param *kp)
{
	int place = sysfs_match_string(place_names, text);

	if (place < 0)
		return place;
	WRITE_ONCE(*(int *)kp->arg, place);
	return 0;
}

static int place_get(char *text, const struct kernel_param *kp)
{
	return sysfs_emit(text, "%s\n", place_names[READ_ONCE(*(int *)kp->arg)]);
}

static const struct kernel_param_ops place_ops = {
	.set = place_set,
	.get = place_get,
};
module_param_cb(fail_read, &place_ops, &fail_read, 0644);
MODULE_PARM_DESC(fail_read, "the chunk of a save that fails: first, middle, last; none");
module_param_cb(fail_write, &place_ops, &fail_write, 0644);
MODULE_PARM_DESC(fail_write, "the chunk of a load that fails: first, middle, last; none");
module_param_cb(gone_read, &place_ops, &gone_read, 0644);
MODULE_PARM_DESC(gone_read, "the chunk of a save at which gone becomes 1: first, middle, last; none");
module_param_cb(gone_write, &place_ops, &gone_write, 0644);
MODULE_PARM_DESC(gone_write, "the chunk of a load at which gone becomes 1: first, middle, last; none");

/* Those behind it fail, too: nobody may go on as if it had come. */
static bool bring_at_place(int place, u64 done, u64 all, bool last)
{
	switch (place) {
	case PLACE_FIRST:
		return true;
	case PLACE_MIDDLE:
		return done >= all / 2;
	case PLACE_LAST:
		return last;
	}
	return false;
}

/* @goes: where the device is gone; @fails: where it says EIO. */
static int bring_chunk(int goes, int fails, u64 done, u64 all, bool last)
{
	if (bring_at_place(goes, done, all, last))
		WRITE_ONCE(gone, true);
	if (bring_gone())
		return -ENODEV;
	return bring_at_place(fails, done, all, last) ? -EIO : 0;
}

int bring_fail_read(u64 done, u64 all, bool last)
{
	return bring_chunk(READ_ONCE(gone_read), READ_ONCE(fail_read), done,
			   all, last);
}

int bring_fail_write(u64 done, u64 all, bool last)
{
	return bring_chunk(READ_ONCE(gone_write), READ_ONCE(fail_write), done,
			   all, last);
}

int bring_fail_reset(void)
{
	return READ_ONCE(fail_reset) ? -EIO : 0;
}

int bring_gone(void)
{
	return READ_ONCE(gone) ? -ENODEV : 0;
}

bool bring_hard_reset(void)
{
	return READ_ONCE(hard_reset);
}
