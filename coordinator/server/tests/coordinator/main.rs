//! The real server binary, over real sockets, with real clients.

#[cfg(test)]
mod administration;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod enrolment;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod load;
#[cfg(test)]
mod relays;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod stream;
