// Which fds of which process are of interest: one table a process (threads and CLONE_FILES share it), one OpenFile a file that was opened.
// Tracer's thread. kcmp(2) tells whether two fds are one file; where the kernel has no kcmp, the name of the file has to do.
#pragma once
#include "tracer.h"

namespace ferry {

class TracedFiles {
 public:
  explicit TracedFiles(const TraceRules& rules) : rules_(rules) {}

  /** The kind of a file by its name; false: it is of no interest. */
  bool Matches(const std::string& link, uint32_t* kind) const;
  /** A file that was just opened, or made by an ioctl: a new one in any case. */
  std::shared_ptr<OpenFile> Add(const std::string& link, uint32_t kind);
  /** A file that came from elsewhere (a socket, a parent): one that is known, or a new one, or null. */
  std::shared_ptr<OpenFile> Find(pid_t pid, int fd);

  std::shared_ptr<FdTable> NewTable();
  std::shared_ptr<FdTable> Copy(const FdTable& table);
  /** Tables by who owns them, for Find. */
  void Owner(const std::shared_ptr<FdTable>& table, pid_t pid);

 private:
  struct Owned {
    std::weak_ptr<FdTable> table;
    pid_t pid;
  };
  const TraceRules& rules_;
  uint32_t next_ = 1;
  std::vector<std::weak_ptr<OpenFile>> files_;
  std::vector<Owned> owned_;
};

}  // namespace ferry
