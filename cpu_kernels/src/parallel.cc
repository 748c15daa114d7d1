// The team that every handler of the process shares.
#include "parallel.h"

namespace realm {

// Never destroyed: a helper may outlive the statics of the process by a moment.
Team& TheTeam() {
  static Team* team = new Team;
  return *team;
}

}  // namespace realm
