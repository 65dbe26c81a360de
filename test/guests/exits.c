/* count= port exits (port=, default 0x80) or MMIO exits (mmio=1, at 0xd0000000), then exits. read=1 reads instead of writing. */
#include "guest.h"

void run(void) {
  u64 count = option("count", 1000), port = option("port", 0x80), sum = 0;
  volatile u32 *mmio = (u32 *)option("address", 0xd0000000);
  int is_mmio = option("mmio", 0), is_read = option("read", 0);
  for (u64 i = 0; i < count; i++) {
    if (is_mmio && is_read) sum += *mmio;
    else if (is_mmio) *mmio = i;
    else if (is_read) sum += inb(port);
    else outb(port, i);
  }
  put_text("exits");
  put_field("count", count);
  put_field("sum", sum);
  put_char('\n');
}
