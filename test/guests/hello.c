/* Says hello on COM1, tells what the loader handed over, and exits with code= (0). */
#include "guest.h"

void run(void) {
  put_text("hello from a flat guest\n");
  put_text("boot");
  put_field("flags", boot_info->flags);
  put_field("lower", boot_info->mem_lower);
  put_field("upper", boot_info->mem_upper);
  put_field("modules", boot_info->flags & 8 ? boot_info->mods_count : 0);
  put_text("\ncmdline=");
  put_text((const char *)(u64)boot_info->cmdline);
  put_char('\n');
  for (u32 at = 0; at < boot_info->mmap_length;) {
    u8 *entry = (u8 *)(u64)boot_info->mmap_addr + at;
    put_text("map start=");
    put_hex(*(u32 *)(entry + 4) | (u64) * (u32 *)(entry + 8) << 32);
    put_text(" length=");
    put_hex(*(u32 *)(entry + 12) | (u64) * (u32 *)(entry + 16) << 32);
    put_field("type", *(u32 *)(entry + 20));
    put_char('\n');
    at += *(u32 *)entry + 4;
  }
  if (boot_info->flags & 8) {
    struct multiboot_module *module = (struct multiboot_module *)(u64)boot_info->mods_addr;
    put_text("module=");
    for (u32 at = module->start; at < module->end; at++) put_char(*(char *)(u64)at);
    put_char('\n');
  }
  leave(option("code", 0));
}
