// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's parameters (README.md) and which instance gets which.
 */
#include <linux/module.h>
#include "bringup.h"

static char *abi[BRING_INSTANCES] = { "d" };
static unsigned long long memory[BRING_INSTANCES] = { 0x100000 };
static unsigned int features[BRING_INSTANCES] = { 0xf };
static unsigned long section[BRING_INSTANCES] = { 0x10000 };
static unsigned int nr_abi = 1, nr_memory = 1, nr_features = 1, nr_section = 1;
static unsigned int region_type = 2, bug, odd;
static bool late_validation;

module_param_array(abi, charp, &nr_abi, 0444);
MODULE_PARM_DESC(abi, "generation of the migration interface: a, b, c or d, by instance");
module_param_array(memory, ullong, &nr_memory, 0444);
MODULE_PARM_DESC(memory, "bytes of device memory, by instance");
module_param_array(features, uint, &nr_features, 0444);
MODULE_PARM_DESC(features, "bit set, by instance (README.md)");
module_param_array(section, ulong, &nr_section, 0444);
MODULE_PARM_DESC(section, "bytes of the data section (b, c) or MEMORY region (a), by instance");
module_param(region_type, uint, 0444);
MODULE_PARM_DESC(region_type, "type of abi b's region: 2 or 3");
module_param(late_validation, bool, 0644);
MODULE_PARM_DESC(late_validation, "RESUMING to STOP is refused (b, c)");
module_param(bug, uint, 0644);
MODULE_PARM_DESC(bug, "seeded bug, from the next open on (bugs.h)");
module_param(odd, uint, 0644);
MODULE_PARM_DESC(odd, "legal oddity, from the next open on (bugs.h)");

bool bring_late_validation(void)
{
	return late_validation;
}

static DECLARE_BITMAP(instances, BRING_INSTANCES);

int bring_take_instance(void)
{
	unsigned int n;

	for (n = 0; n < BRING_INSTANCES; n++)
		if (!test_and_set_bit(n, instances))
			return n;
	return -ENOSPC;
}

/* The last value of a list counts for all further instances. */
#define bring_param(list, n)	((list)[min((n), nr_##list - 1)])

int bring_configure(struct bring_device *dev)
{
	static const struct bring_abi_ops * const ops[] = {
		[BRING_A] = &bring_region_a_ops,
		[BRING_B] = &bring_region_bc_ops,
		[BRING_C] = &bring_region_bc_ops,
		[BRING_D] = &bring_v2_ops,
	};
	const char *which = bring_param(abi, dev->instance);
	u64 size = bring_param(memory, dev->instance);

	dev->features = bring_param(features, dev->instance);
	dev->section = bring_param(section, dev->instance);
	dev->region_type = region_type;
	dev->regs.memory_size = size;
	if (which[0] < 'a' || which[0] > 'd' || which[1] ||
	    size < BRING_MEMORY_MIN || size > BRING_MEMORY_MAX ||
	    size % PAGE_SIZE || dev->section < PAGE_SIZE ||
	    dev->section > BRING_MEMORY_MAX || dev->section % PAGE_SIZE ||
	    region_type < 2 || region_type > 3)
		return -EINVAL;
	dev->abi = which[0] - 'a';
	dev->ops = ops[dev->abi];
	return 0;
}

void bring_put_instance(struct bring_device *dev)
{
	clear_bit(dev->instance, instances);
}

/* Both count from an open to the next, so that no rule changes under way. */
void bring_take_faults(struct bring_device *dev)
{
	dev->bug = bug;
	dev->odd = odd;
}
