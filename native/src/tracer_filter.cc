// The seccomp filter of tracer.h: stops at the calls that open, pass on or use files, for ioctls only at those of one type. What it does
// not know, and 32-bit programs, run untouched. Installed in the child between fork and exec; inherited by all that it starts.
// seccomp(2)
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>

#include "tracer.h"

#ifndef __x86_64__
#error "the tracer knows x86-64 system calls only"
#endif

namespace ferry {
namespace {

constexpr uint32_t kTrace = SECCOMP_RET_TRACE;
constexpr uint32_t kAllow = SECCOMP_RET_ALLOW;
constexpr size_t kNumber = offsetof(seccomp_data, nr);
constexpr size_t kArch = offsetof(seccomp_data, arch);
/** The low half: all that is compared is 32 bits wide. */
constexpr uint32_t Arg(unsigned index) { return offsetof(seccomp_data, args) + index * 8; }

constexpr int kWhole[] = {
    SYS_open,    SYS_openat,   SYS_openat2, SYS_creat,   SYS_close,   SYS_close_range, SYS_dup,         SYS_dup2,
    SYS_dup3,    SYS_read,     SYS_write,   SYS_pread64, SYS_pwrite64, SYS_readv,      SYS_writev,      SYS_preadv,
    SYS_pwritev, SYS_preadv2,  SYS_pwritev2, SYS_poll,   SYS_ppoll,   SYS_recvmsg,     SYS_recvmmsg,    SYS_pidfd_getfd,
};
constexpr size_t kMost = 2 * (sizeof kWhole / sizeof *kWhole) + 40;

struct Program {
  sock_filter code[kMost];
  unsigned short length = 0;

  void Add(uint16_t code_, uint32_t k, uint8_t jt = 0, uint8_t jf = 0) { code[length++] = {code_, jt, jf, k}; }
  void Load(size_t offset) { Add(BPF_LD | BPF_W | BPF_ABS, offset); }
  void Return(uint32_t what) { Add(BPF_RET | BPF_K, what); }
  /** Skips `count` instructions unless A equals (or, with BPF_JSET, shares a bit with) `value`. */
  void Unless(uint16_t test, uint32_t value, uint8_t count) { Add(BPF_JMP | test | BPF_K, value, 0, count); }
};

}  // namespace

int InstallTraceFilter(uint32_t ioctlType) {
  Program program;
  program.Load(kArch);
  program.Unless(BPF_JEQ, AUDIT_ARCH_X86_64, 1);
  program.Add(BPF_JMP | BPF_JA, 1);
  program.Return(kAllow);
  program.Load(kNumber);
  for (int number : kWhole) {
    program.Unless(BPF_JEQ, number, 1);
    program.Return(kTrace);
  }
  program.Unless(BPF_JEQ, SYS_ioctl, 6);
  program.Load(Arg(1));
  program.Add(BPF_ALU | BPF_RSH | BPF_K, 8);
  program.Add(BPF_ALU | BPF_AND | BPF_K, 0xff);
  program.Unless(BPF_JEQ, ioctlType, 1);
  program.Return(kTrace);
  program.Return(kAllow);
  program.Unless(BPF_JEQ, SYS_mmap, 4);
  program.Load(Arg(3));
  program.Add(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 1, 0);
  program.Return(kTrace);
  program.Return(kAllow);
  program.Unless(BPF_JEQ, SYS_fcntl, 6);
  program.Load(Arg(1));
  program.Unless(BPF_JEQ, F_DUPFD, 1);
  program.Return(kTrace);
  program.Unless(BPF_JEQ, F_DUPFD_CLOEXEC, 1);
  program.Return(kTrace);
  program.Return(kAllow);
  program.Unless(BPF_JEQ, SYS_unshare, 4);
  program.Load(Arg(0));
  program.Unless(BPF_JSET, CLONE_FILES, 1);
  program.Return(kTrace);
  program.Return(kAllow);
  program.Return(kAllow);
  sock_fprog filter = {program.length, program.code};
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0) return 0;
  // Without CAP_SYS_ADMIN the program must give up gaining rights by exec; under ptrace it could not anyway.
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0 ? 0 : errno;
}

}  // namespace ferry
