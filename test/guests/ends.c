/* Each way in which a guest ends or resets its machine: end=triple|i8042|cf9|s5|panic|halt|ud|loop. A word at 8 MiB survives a reset,
 * so that the second time it says "again" and exits with code 5. slp= is the SLP_TYP of S5; pm=, pvpanic= the ports. */
#include "guest.h"

#define MARK ((volatile u64 *)0x800000UL)
#define MAGIC 0x66657272792d3031UL

static void triple_fault(void) {
  struct __attribute__((packed)) {
    u16 limit;
    u64 base;
  } none = {0, 0};
  /* A page fault, not int3: KVMs that interpret ring 0 do not emulate INT in long mode. */
  asm volatile("lidt %0; mov (%1), %%rax" ::"m"(none), "r"(1UL << 33) : "rax");
}

void run(void) {
  if (*MARK == MAGIC) {
    put_text("again\n");
    *MARK = 0;
    leave(5);
  }
  *MARK = MAGIC;
  put_text("first\n");
  if (option_is("end", "triple")) triple_fault();
  if (option_is("end", "i8042")) outb(0x64, 0xfe);
  if (option_is("end", "cf9")) outb(0xcf9, 6);
  if (option_is("end", "s5")) outw(option("pm", 0x604), 1 << 13 | option("slp", 5) << 10);
  if (option_is("end", "panic")) outb(option("pvpanic", 0x505), 1);
  if (option_is("end", "loop"))
    for (;;) cpu_relax();
  for (;;) asm volatile("cli; hlt");
}
