"""What a person may see of a tenant: the rules that every page and every answer goes by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet
from django.utils.translation import gettext

from audit.walls import across
from tenants.models import Member, Tenant, User

# With a place on the staff, what it takes to see tenants, and to see what they used.
SEE_TENANTS = "tenants.view_tenant"
SEE_USAGE = "budgets.view_ledgerentry"
# And to see and to change keys.
SEE_KEYS = "keys.view_apikey"
CHANGE_KEYS = "keys.change_apikey"
CHANGE_MEMBERS = "tenants.change_member"
CHANGE_TENANTS = "tenants.change_tenant"
SEE_AUDIT = "audit.view_auditevent"
# And to grant more of any limit, that of the tenant and of the platform included.
GRANT_RAISES = "budgets.add_limitraise"

WHOLE_TENANT = frozenset({Member.Role.OWNER, Member.Role.ADMIN, Member.Role.FINANCE, Member.Role.AUDITOR})
EXPORTING = frozenset({Member.Role.OWNER, Member.Role.FINANCE})
AUDITING = frozenset({Member.Role.OWNER, Member.Role.ADMIN, Member.Role.AUDITOR})
MANAGING = frozenset({Member.Role.OWNER, Member.Role.ADMIN})
ASKING = frozenset({Member.Role.OWNER, Member.Role.ADMIN, Member.Role.MEMBER})
# The roles that somebody of a role may give, take, and let go.
GRANTING = {
    Member.Role.OWNER: frozenset(Member.Role),
    Member.Role.ADMIN: frozenset(Member.Role) - {Member.Role.OWNER},
}

Person = User | AnonymousUser


class Reach(StrEnum):
    """How much of a tenant's usage or keys is a person's to read or manage; ``NOTHING`` is false."""

    NOTHING = ""
    OWN_KEYS = "own keys"
    WHOLE_TENANT = "whole tenant"


@dataclass(frozen=True, slots=True)
class Access:
    """A person at a tenant: a member of it, an operator, or both."""

    user: User
    tenant: Tenant
    member: Member | None

    @property
    def role(self) -> str:
        """The role as a word; that of somebody who is no member is ``operator``."""
        return str(self.member.role) if self.member else "operator"

    @property
    def role_name(self) -> str:
        """The role as people call it."""
        return self.member.get_role_display() if self.member else gettext("Operator")

    @property
    def time_zone(self) -> str:
        """The zone in which times are shown to them; days are those of the tenant's, whatever it is."""
        return self.user.time_zone or self.tenant.time_zone

    @property
    def usage(self) -> Reach:
        """How much of the usage they may read; of their own keys it is that of ``member``."""
        if is_operator(self.user, SEE_USAGE) or self._is_one_of(WHOLE_TENANT):
            return Reach.WHOLE_TENANT
        return Reach.OWN_KEYS if self.member else Reach.NOTHING

    @property
    def keys(self) -> Reach:
        """Whose keys they see; the secret of a key nobody sees again."""
        if is_operator(self.user, SEE_KEYS) or self._is_one_of(WHOLE_TENANT):
            return Reach.WHOLE_TENANT
        return Reach.OWN_KEYS if self.member else Reach.NOTHING

    @property
    def manages_keys(self) -> Reach:
        """Whose keys they issue, change, rotate, disable and revoke."""
        if is_operator(self.user, CHANGE_KEYS) or self._is_one_of(MANAGING):
            return Reach.WHOLE_TENANT
        return Reach.OWN_KEYS if self._is_one_of(frozenset({Member.Role.MEMBER})) else Reach.NOTHING

    @property
    def exports(self) -> bool:
        """Whether they may take usage of the tenant with them."""
        return is_operator(self.user, SEE_USAGE) or self._is_one_of(EXPORTING)

    @property
    def reads_statements(self) -> bool:
        """Whether they may read what the tenant was billed for: who exports, and who looks into it."""
        return self.exports or self._is_one_of(frozenset({Member.Role.AUDITOR}))

    @property
    def reads_audit(self) -> bool:
        """Whether they may read who changed what in the tenant."""
        return is_operator(self.user, SEE_AUDIT) or self._is_one_of(AUDITING)

    @property
    def reads_team(self) -> bool:
        """Whether they see all members, invitations and service accounts; a member sees only themselves."""
        return is_operator(self.user) or self._is_one_of(WHOLE_TENANT)

    @property
    def grants(self) -> frozenset[Member.Role]:
        """The roles they may give; whoever has another one they cannot change, invite or remove."""
        if is_operator(self.user, CHANGE_MEMBERS):
            return GRANTING[Member.Role.OWNER]
        return GRANTING.get(Member.Role(self.member.role), frozenset()) if self.member else frozenset()

    @property
    def manages_team(self) -> bool:
        """Whether they may invite and remove people, change roles, and open and close service accounts."""
        return bool(self.grants)

    @property
    def asks_for_raises(self) -> bool:
        """Whether they may ask for more of a limit that they see."""
        return self._is_one_of(ASKING)

    @property
    def grants_raises(self) -> bool:
        """Whether they may grant others more of what the tenant shares out: to teams, members and keys."""
        return self.grants_every_raise or self._is_one_of(MANAGING)

    @property
    def grants_every_raise(self) -> bool:
        """Whether they may grant more of any limit, of what limits the tenant as a whole too."""
        return is_operator(self.user, GRANT_RAISES)

    def lifts_limits_of(self, holder: Member | None) -> bool:
        """Whether they may lift what somebody else has set for a key of ``holder``; None: of nobody."""
        own = self.member is not None and holder == self.member
        return self.grants_every_raise or (self.grants_raises and not own)

    @property
    def manages_recipients(self) -> bool:
        """Whether they say who is told of what happens to the tenant."""
        return self._is_one_of(MANAGING)

    @property
    def chooses_language(self) -> bool:
        """Whether they choose in which language mails are to those who have chosen none themselves."""
        return is_operator(self.user, CHANGE_TENANTS) or self._is_one_of(MANAGING)

    def _is_one_of(self, roles: frozenset[Member.Role]) -> bool:
        return self.member is not None and self.member.role in roles


def is_operator(user: Person, permission: str = SEE_TENANTS) -> bool:
    """Whether a person sees all tenants, and may do there what ``permission`` names."""
    return user.is_active and user.is_staff and user.has_perm(permission)


def tenants_of(user: Person) -> QuerySet[Tenant]:
    """The tenants that a person sees, by slug: those they belong to, all if they are an operator.

    Suspended ones too: what was used has still to be read and paid for.
    """
    if is_operator(user):
        return Tenant.objects.all()
    if not user.is_active:
        return Tenant.objects.none()
    return Tenant.objects.filter(members__user_id=user.pk)


def access_to(user: Person, slug: str) -> Access | None:
    """What a person is at the tenant with this slug; None: there is none that they may know of."""
    if not isinstance(user, User) or not user.is_active:
        return None
    # What somebody may see is asked for where nothing can be seen yet.
    with across():
        found = Member.objects.filter(user_id=user.pk, tenant__slug=slug)
        member = found.select_related("tenant", "team").first()
        if member is not None:
            # Whoever asks for the person of a place need not look them up again.
            member.user = user
            return Access(user, member.tenant, member)
        tenant = tenants_of(user).filter(slug=slug).first()
    return None if tenant is None else Access(user, tenant, None)
