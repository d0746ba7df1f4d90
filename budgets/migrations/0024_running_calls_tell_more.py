from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("budgets", "0023_internal_prices")]

    operations = [
        migrations.AddField("runningcall", "client", models.TextField(blank=True)),
        migrations.AddField("runningcall", "held_tokens", models.BigIntegerField()),
        migrations.AddField("runningcall", "held_micro_usd", models.BigIntegerField(null=True)),
    ]
